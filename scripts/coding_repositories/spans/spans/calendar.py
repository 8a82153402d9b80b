"""Bookings of one room, by the hour."""

from spans.interval import gaps, overlaps, total


class Taken(Exception):
    """Somebody else has the room then."""


class Room:
    """A room that is open from `opens` to `closes`."""

    def __init__(self, opens=8, closes=18):
        self.opens = opens
        self.closes = closes
        self.bookings = {}

    def book(self, name, start, end):
        if not (self.opens <= start < end <= self.closes):
            raise ValueError("outside opening hours")
        for other, slot in self.bookings.items():
            if overlaps(slot, (start, end)) and other != name:
                raise Taken(other)
        self.bookings[name] = (start, end)

    def free(self):
        """When the room is open and empty."""
        return gaps(self.bookings.values(), self.opens, self.closes)

    def first_free(self, hours):
        """The earliest start of so many free hours in a row, or None."""
        for start, end in self.free():
            if end - start >= hours:
                return start
        return None

    def use(self):
        """The share of its open hours for which it is booked, in percent, rounded down."""
        return 100 * total(self.bookings.values()) // (self.closes - self.opens)
