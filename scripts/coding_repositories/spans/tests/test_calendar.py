import unittest

from spans.calendar import Room, Taken


class RoomTest(unittest.TestCase):
    def setUp(self):
        self.room = Room()
        self.room.book("ann", 9, 11)
        self.room.book("bob", 12, 15)

    def test_a_slot_that_touches_another_is_free(self):
        self.room.book("eve", 11, 12)
        self.assertEqual(self.room.free(), [(8, 9), (15, 18)])

    def test_a_slot_that_is_taken_is_refused(self):
        with self.assertRaises(Taken):
            self.room.book("eve", 10, 12)
        self.assertNotIn("eve", self.room.bookings)

    def test_one_may_move_ones_own_booking(self):
        self.room.book("ann", 10, 12)
        self.assertEqual(self.room.free(), [(8, 10), (15, 18)])

    def test_opening_hours_hold_at_both_ends(self):
        Room().book("x", 8, 18)
        for start, end in ((7, 9), (17, 19), (9, 9)):
            with self.assertRaises(ValueError):
                Room().book("x", start, end)

    def test_the_first_gap_that_is_long_enough(self):
        self.assertEqual([self.room.first_free(hours) for hours in (1, 2, 3, 4)], [8, 15, 15, None])

    def test_use_is_a_share_of_open_hours(self):
        self.assertEqual(self.room.use(), 50)
        self.room.book("eve", 11, 12)
        self.assertEqual(self.room.use(), 60)
        self.assertEqual(Room(opens=9).use(), 0)
