"""Ways over a grid, as lists of (row, column)."""

from collections import deque

STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


def is_free(grid, row, column):
    """Whether the place is on the grid and no wall."""
    if row < 0 or column < 0:
        return False
    if row >= len(grid) or column >= len(grid[row]):
        return False
    return grid[row][column] != "#"


def shortest_way(grid, start, goal):
    """A shortest way from start to goal, both included; None if there is none."""
    came_from = {start: None}
    line = deque([start])
    while line:
        here = line.popleft()
        if here == goal:
            return _trace(came_from, goal)
        for down, right in STEPS:
            place = (here[0] + down, here[1] + right)
            if is_free(grid, *place) and place not in came_from:
                came_from[place] = here
                line.append(place)
    return None


def _trace(came_from, place):
    way = []
    while place is not None:
        way.append(place)
        place = came_from[place]
    return way[::-1]


def turns(way):
    """How often a way changes its direction."""
    count = 0
    for before, here, after in zip(way, way[1:], way[2:]):
        if (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1]):
            count += 1
    return count
