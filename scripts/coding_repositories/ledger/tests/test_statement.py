import unittest

from ledger.accounts import Account
from ledger.statement import format_cents, interest, opening_balance, statement


class StatementTest(unittest.TestCase):
    def setUp(self):
        self.account = Account("a", balance=100)
        for day, amount, text in ((3, 50, "c"), (1, 10, "a"), (2, -30, "b"), (4, 7, "d")):
            self.account.book(day, amount, text)

    def test_the_opening_balance_is_before_the_day(self):
        self.assertEqual(opening_balance(self.account, 1), 100)
        self.assertEqual(opening_balance(self.account, 3), 80)
        self.assertEqual(opening_balance(self.account, 9), 137)

    def test_lines_are_in_order_and_both_days_count(self):
        self.assertEqual(statement(self.account, 2, 3), [(2, "b", -30, 80), (3, "c", 50, 130)])

    def test_cents_are_shown_with_separators(self):
        self.assertEqual(format_cents(1234567), "12,345.67")
        self.assertEqual(format_cents(-5), "-0.05")
        self.assertEqual(format_cents(0), "0.00")

    def test_interest_is_rounded_half_up(self):
        self.assertEqual(interest(100000, 360, 15), 1500)
        self.assertEqual(interest(36000, 5, 1), 1)
        self.assertEqual(interest(36000, 4, 1), 0)
        self.assertEqual(interest(100000, 180, 15), 750)
