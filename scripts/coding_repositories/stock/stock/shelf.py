"""What is in stock."""


class Shelf:
    """Counts of things, with a lowest count below which more is ordered."""

    def __init__(self):
        self.counts = {}
        self.lowest = {}

    def put(self, name, count, lowest=None):
        if count < 0:
            raise ValueError("count must not be negative")
        self.counts[name] = self.counts.get(name, 0) + count
        if lowest is not None:
            self.lowest[name] = lowest

    def take(self, name, count=1):
        """Take so many, or fewer if there are fewer; returns how many."""
        taken = min(count, self.counts.get(name, 0))
        if taken > 0:
            self.counts[name] -= taken
        return taken

    def to_order(self):
        """What must be ordered: as many as fill the shelf to twice its lowest count."""
        orders = {}
        for name, lowest in self.lowest.items():
            count = self.counts.get(name, 0)
            if count < lowest:
                orders[name] = 2 * lowest - count
        return orders

    def days_left(self, name, sold_a_day):
        """Whole days until there is none left, at that pace; None if it never runs out."""
        if sold_a_day == 0:
            return None
        return self.counts.get(name, 0) // sold_a_day
