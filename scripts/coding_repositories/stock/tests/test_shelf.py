import unittest

from stock.shelf import Shelf


class ShelfTest(unittest.TestCase):
    def setUp(self):
        self.shelf = Shelf()
        self.shelf.put("tea", 5, lowest=4)

    def test_things_add_up(self):
        self.shelf.put("tea", 2)
        self.shelf.put("jam", 0)
        self.assertEqual(self.shelf.counts, {"tea": 7, "jam": 0})
        with self.assertRaises(ValueError):
            self.shelf.put("tea", -1)

    def test_nobody_takes_more_than_there_is(self):
        self.assertEqual(
            [self.shelf.take("tea", 3), self.shelf.take("tea", 3), self.shelf.take("tea")], [3, 2, 0]
        )
        self.assertEqual(self.shelf.take("jam"), 0)
        self.shelf.put("jam", 2)
        self.assertEqual(self.shelf.take("jam"), 1)

    def test_orders_fill_to_twice_the_lowest_count(self):
        self.assertEqual(self.shelf.to_order(), {})
        self.shelf.take("tea")
        self.assertEqual(self.shelf.to_order(), {})
        self.shelf.take("tea")
        self.assertEqual(self.shelf.to_order(), {"tea": 5})

    def test_days_are_whole(self):
        self.assertEqual([self.shelf.days_left("tea", sold) for sold in (0, 1, 2, 6)], [None, 5, 2, 0])
        self.assertEqual(self.shelf.days_left("jam", 1), 0)
