import unittest

from routes.grid import is_free, shortest_way, turns

GRID = ["..#.", ".#..", "...."]


class GridTest(unittest.TestCase):
    def test_walls_and_the_outside_are_not_free(self):
        free = [(r, c) for r in range(-1, 4) for c in range(-1, 5) if is_free(GRID, r, c)]
        self.assertEqual(len(free), 10)
        self.assertIn((0, 0), free)
        self.assertIn((2, 3), free)

    def test_a_shortest_way_goes_around_walls(self):
        way = shortest_way(GRID, (0, 0), (0, 3))
        self.assertEqual(len(way), 8)
        self.assertEqual((way[0], way[-1]), ((0, 0), (0, 3)))
        for (r, c), (s, d) in zip(way, way[1:]):
            self.assertEqual(abs(r - s) + abs(c - d), 1)

    def test_no_way_is_none_and_no_step_is_one_place(self):
        self.assertIsNone(shortest_way(["#.", ".#"], (0, 1), (1, 0)))
        self.assertEqual(shortest_way(GRID, (1, 0), (1, 0)), [(1, 0)])

    def test_turns_are_changes_of_direction(self):
        self.assertEqual(turns([(0, 0), (0, 1), (0, 2)]), 0)
        self.assertEqual(turns([(0, 0), (0, 1), (1, 1), (2, 1), (2, 2)]), 2)
        self.assertEqual(turns([(3, 3)]), 0)
        self.assertEqual(turns([(2, 1), (1, 1), (1, 2)]), 1)
