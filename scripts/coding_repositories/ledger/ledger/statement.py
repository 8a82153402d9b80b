"""What an account did between two days."""


def opening_balance(account, first_day):
    """The balance before the first booking of `first_day`."""
    later = sum(amount for day, amount, _ in account.entries if day >= first_day)
    return account.balance - later


def statement(account, first_day, last_day):
    """Lines (day, text, amount, balance after it), days included at both ends."""
    balance = opening_balance(account, first_day)
    lines = []
    for day, amount, text in sorted(account.entries, key=lambda entry: entry[0]):
        if first_day <= day <= last_day:
            balance += amount
            lines.append((day, text, amount, balance))
    return lines


def format_cents(cents):
    """1234567 -> '12,345.67'; below zero with a minus sign."""
    sign = "-" if cents < 0 else ""
    whole, rest = divmod(abs(cents), 100)
    return f"{sign}{whole:,}.{rest:02d}"


def interest(balance, days, per_mille_a_year):
    """Interest in whole cents, rounded half up; a year has 360 days."""
    numerator = balance * days * per_mille_a_year
    denominator = 360 * 1000
    return (2 * numerator + denominator) // (2 * denominator)
