"""When an engine waits for the rest of a burst before it computes.

Pure policy. Turns come in bursts: the samples of a group, or all that ended in one decode step. A step that
starts with the first of a burst alone makes the others wait for it, and parts turns that would have shared
every later step too.
"""

from __future__ import annotations

_MOST_LINGERS = 10


def more_may_come(
    *, since_first_s: float, since_last_s: float, num_on_their_way: int, linger_s: float
) -> bool:
    """Whether to wait, given when the first and the last of the waiting turns arrived.

    It waits while turns arrive within `linger_s` of each other or are known to be on their way (being read,
    being verified), and for ten times that at most.
    """
    return since_first_s < _MOST_LINGERS * linger_s and (since_last_s < linger_s or num_on_their_way > 0)


def next_look_s(first_s: float, last_s: float, now_s: float, linger_s: float) -> float:
    """When waiting may end though nothing more arrives, for one who waits now; later than now.

    The first and the last of the waiting turns arrived at `first_s` and `last_s`.
    """
    quiet_s, end_s = last_s + linger_s, first_s + _MOST_LINGERS * linger_s
    return max(min(quiet_s, end_s) if now_s < quiet_s else end_s, now_s + 0.01 * linger_s)
