"""Faults drawn from a seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rollout.chaos.schedule import FaultKind, draw_faults


@given(st.integers(0, 10**6), st.floats(1, 2000), st.floats(0.5, 60))
def test_faults_of_a_seed_are_the_same_each_time_and_each_kind_has_its_turn(
    seed: int, duration_s: float, every_s: float
) -> None:
    faults = draw_faults(seed, duration_s, every_s)
    assert faults == draw_faults(seed, duration_s, every_s)
    assert [fault.number for fault in faults] == list(range(len(faults)))
    times = [0.0, *(fault.at_s for fault in faults), duration_s]
    assert all(before < after for before, after in pairwise(times))
    assert all(after - before <= 1.5 * every_s + 1e-6 for before, after in pairwise(times))
    counts = Counter(fault.kind for fault in faults)
    assert max(counts.values(), default=0) - min((counts[kind] for kind in FaultKind), default=0) <= 1


def test_another_seed_gives_other_faults() -> None:
    assert draw_faults(1, 600, 10) != draw_faults(2, 600, 10)
    assert draw_faults(1, 600, 10, kinds=()) == []
