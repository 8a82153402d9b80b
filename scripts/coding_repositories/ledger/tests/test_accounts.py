import unittest

from ledger.accounts import Account, Refused, transfer


class TransferTest(unittest.TestCase):
    def setUp(self):
        self.rent = Account("rent")
        self.salary = Account("salary", balance=1000, overdraft=200)

    def test_a_transfer_moves_the_amount_once(self):
        transfer(self.salary, self.rent, 300, day=5, text="May")
        self.assertEqual((self.salary.balance, self.rent.balance), (700, 300))
        self.assertEqual(self.salary.entries, [(5, -300, "May")])
        self.assertEqual(self.rent.entries, [(5, 300, "May")])

    def test_the_overdraft_may_be_used_to_the_last_cent(self):
        transfer(self.salary, self.rent, 1200, day=1)
        self.assertEqual(self.salary.balance, -200)
        self.assertFalse(self.salary.can_pay(1))

    def test_more_than_that_is_refused_and_nothing_is_booked(self):
        with self.assertRaises(Refused):
            transfer(self.salary, self.rent, 1201, day=1)
        self.assertEqual((self.salary.balance, self.rent.balance), (1000, 0))
        self.assertEqual(self.rent.entries, [])

    def test_one_cent_can_be_moved_and_none_cannot(self):
        transfer(self.salary, self.rent, 1, day=1)
        self.assertEqual(self.rent.balance, 1)
        for amount in (0, -5):
            with self.assertRaises(Refused):
                transfer(self.salary, self.rent, amount, day=1)

    def test_an_account_does_not_pay_itself(self):
        with self.assertRaises(Refused):
            transfer(self.salary, self.salary, 10, day=1)

    def test_a_new_account_is_empty(self):
        self.assertEqual((Account("x").balance, Account("x").overdraft), (0, 0))
        self.assertFalse(Account("x").can_pay(1))
