import unittest

from spans.interval import gaps, intersection, merge, overlaps, total


class IntervalTest(unittest.TestCase):
    def test_neighbours_do_not_overlap(self):
        self.assertTrue(overlaps((1, 4), (3, 5)))
        self.assertTrue(overlaps((3, 5), (1, 4)))
        self.assertFalse(overlaps((1, 3), (3, 5)))
        self.assertFalse(overlaps((3, 5), (1, 3)))

    def test_what_two_share(self):
        self.assertEqual(intersection((1, 4), (2, 9)), (2, 4))
        self.assertIsNone(intersection((1, 2), (2, 3)))

    def test_merging_joins_neighbours_and_what_overlaps(self):
        self.assertEqual(merge([(5, 6), (1, 3), (2, 4), (4, 5), (8, 8), (9, 10)]), [(1, 6), (9, 10)])
        self.assertEqual(merge([(1, 9), (2, 3)]), [(1, 9)])

    def test_gaps_lie_between(self):
        self.assertEqual(gaps([(2, 3), (5, 6)], 0, 8), [(0, 2), (3, 5), (6, 8)])
        self.assertEqual(gaps([(0, 3)], 0, 3), [])
        self.assertEqual(gaps([(5, 9), (1, 2)], 2, 7), [(2, 5)])
        self.assertEqual(gaps([], 1, 2), [(1, 2)])

    def test_nothing_is_counted_twice(self):
        self.assertEqual(total([(1, 4), (2, 6), (8, 9)]), 6)
