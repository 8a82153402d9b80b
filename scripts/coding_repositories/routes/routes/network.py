"""Distances between cities on roads that go both ways."""

import heapq


class Network:
    def __init__(self):
        self.roads = {}

    def add(self, a, b, km):
        """Build a road; of two between the same cities the shorter one counts."""
        if km <= 0:
            raise ValueError("a road has a length")
        for one, other in ((a, b), (b, a)):
            known = self.roads.setdefault(one, {})
            known[other] = min(km, known.get(other, km))

    def distances(self, start):
        """The shortest distance to every city that can be reached."""
        done = {}
        heap = [(0, start)]
        while heap:
            km, city = heapq.heappop(heap)
            if city in done:
                continue
            done[city] = km
            for other, road in self.roads.get(city, {}).items():
                if other not in done:
                    heapq.heappush(heap, (km + road, other))
        return done

    def within(self, start, km):
        """Cities at most so far away, the nearest first, without the start itself."""
        near = [(far, city) for city, far in self.distances(start).items() if 0 < far <= km]
        return [city for _, city in sorted(near)]

    def center(self):
        """The city whose farthest city is nearest; of equals the first by name."""
        best = None
        for city in sorted(self.roads):
            far = max(self.distances(city).values())
            if best is None or far < best[0]:
                best = (far, city)
        return best[1] if best else None
