"""Measured rounds in which the sides take turns, so that a machine's mood meets all of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

Side = Callable[[int], float]
"""Does the work of one round, told its number, and returns the seconds that count."""


def alternate(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by side, in A B A B order; a round that nobody sees warms up first."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            gc.collect()  # what an earlier round left is not this one's to clean up
            took_s = side(number)
            if number:
                seconds[name].append(took_s)
    return seconds
