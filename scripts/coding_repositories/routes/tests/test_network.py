import unittest

from routes.network import Network


class NetworkTest(unittest.TestCase):
    def setUp(self):
        self.net = Network()
        for a, b, km in (("A", "B", 5), ("B", "C", 4), ("A", "C", 12), ("C", "D", 1)):
            self.net.add(a, b, km)

    def test_a_detour_may_be_shorter(self):
        self.assertEqual(self.net.distances("A"), {"A": 0, "B": 5, "C": 9, "D": 10})

    def test_the_shorter_of_two_roads_counts_in_both_directions(self):
        self.net.add("D", "A", 2)
        self.net.add("A", "D", 7)
        self.assertEqual(self.net.distances("A")["D"], 2)
        self.assertEqual(self.net.distances("D")["A"], 2)

    def test_a_road_has_a_length(self):
        for km in (0, -1):
            with self.assertRaises(ValueError):
                self.net.add("A", "E", km)
        self.net.add("A", "E", 1)
        self.assertEqual(self.net.distances("E")["A"], 1)

    def test_near_cities_come_nearest_first(self):
        self.assertEqual(self.net.within("C", 4), ["D", "B"])
        self.assertEqual(self.net.within("C", 3), ["D"])
        self.assertEqual(self.net.within("Z", 3), [])

    def test_the_center_has_everything_near(self):
        self.assertEqual(self.net.center(), "B")
        self.assertIsNone(Network().center())
        pair = Network()
        pair.add("Y", "X", 3)
        self.assertEqual(pair.center(), "X")
