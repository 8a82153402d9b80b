"""Finds the highest rate at which a system still does what is asked of it, by halving the doubt.

Pure: what a trial is, is the caller's affair. Source of the question: DualPath, arXiv 2602.21548, section 7
(agents per second within a TTFT of 4 s and a TPOT of 50 ms).
"""

from __future__ import annotations

from collections.abc import Callable


def highest_rate(holds: Callable[[float], bool], start: float, *, precision: float, max_trials: int) -> float:
    """The highest rate tried that holds; 0 if none does.

    It doubles from `start` while the rate holds, or halves until it does, then bisects until the doubt is
    within `precision` of the answer. At most `max_trials` trials. It expects that what holds at a rate holds
    below it.
    """
    low, high, rate = 0.0, None, start
    for _ in range(max_trials):
        if holds(rate):
            low = rate
        else:
            high = rate
        if high is not None and low and high - low <= precision * low:
            break
        rate = 2 * low if high is None else (low + high) / 2
    return low
