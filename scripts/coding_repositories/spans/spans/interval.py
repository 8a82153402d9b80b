"""Half-open intervals: (2, 5) holds 2, 3 and 4."""


def overlaps(a, b):
    """Whether two intervals share a number."""
    return a[0] < b[1] and b[0] < a[1]


def intersection(a, b):
    """What two intervals share, or None."""
    start, end = max(a[0], b[0]), min(a[1], b[1])
    return (start, end) if start < end else None


def merge(intervals):
    """The fewest intervals that hold the same numbers, in order; empty ones vanish."""
    merged = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def gaps(intervals, start, end):
    """What of [start, end) no interval holds."""
    free, place = [], start
    for first, last in merge(intervals):
        if first > place:
            free.append((place, min(first, end)))
        place = max(place, last)
        if place >= end:
            break
    if place < end:
        free.append((place, end))
    return [(a, b) for a, b in free if a < b]


def total(intervals):
    """How many numbers the intervals hold together."""
    return sum(end - start for start, end in merge(intervals))
