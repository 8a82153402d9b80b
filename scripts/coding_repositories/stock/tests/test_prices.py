import unittest

from stock.prices import basket_total, bulk_percent, change, with_discount


class PricesTest(unittest.TestCase):
    def test_half_a_cent_is_rounded_up(self):
        self.assertEqual(with_discount(105, 10), 95)
        self.assertEqual(with_discount(104, 10), 94)
        self.assertEqual([with_discount(80, p) for p in (0, 100)], [80, 0])
        for percent in (-1, 101):
            with self.assertRaises(ValueError):
                with_discount(80, percent)

    def test_discounts_begin_at_ten_and_fifty(self):
        self.assertEqual([bulk_percent(n) for n in (9, 10, 49, 50)], [0, 10, 10, 20])

    def test_every_third_of_a_kind_costs_half(self):
        prices = {"tea": 300, "jam": 45}
        self.assertEqual(basket_total({"tea": 2}, prices), 600)
        self.assertEqual(basket_total({"tea": 3, "jam": 1}, prices), 795)
        self.assertEqual(basket_total({"jam": 9}, prices), 6 * 45 + 3 * 22)
        self.assertEqual(basket_total({"tea": 10}, prices), 2700)
        self.assertEqual(basket_total({"tea": 50}, prices), 12000)

    def test_change_is_given_in_few_coins(self):
        self.assertEqual(change(500, 112), [200, 100, 50, 20, 10, 5, 2, 1])
        self.assertEqual(change(100, 60), [20, 20])
        self.assertEqual(change(5, 5), [])
        with self.assertRaises(ValueError):
            change(5, 6)
