"""Accounts and transfers. Amounts are whole cents."""


class Refused(Exception):
    """A transfer that must not happen; nothing was booked."""


class Account:
    """A balance that may go below zero by at most `overdraft`."""

    def __init__(self, name, balance=0, overdraft=0):
        self.name = name
        self.balance = balance
        self.overdraft = overdraft
        self.entries = []

    def can_pay(self, amount):
        return amount <= self.balance + self.overdraft

    def book(self, day, amount, text):
        self.balance += amount
        self.entries.append((day, amount, text))


def transfer(source, target, amount, day, text=""):
    """Move `amount` from one account to another."""
    if amount <= 0:
        raise Refused("the amount must be positive")
    if source is target:
        raise Refused("source and target are the same")
    if not source.can_pay(amount):
        raise Refused(f"{source.name} cannot pay {amount}")
    source.book(day, -amount, text)
    target.book(day, amount, text)
