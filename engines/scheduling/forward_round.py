"""When an engine of an expert-parallel group takes part in the round that its group computes.

Pure policy, ours. The engines of a group exchange activations in every layer, so a round ends when its
slowest engine does. All get their batches at about the same time, but not in the same instant.
"""

from __future__ import annotations

_JOIN_SHARE = 0.1


def may_join(now_s: float, began_s: float, end_s: float) -> bool:
    """Whether a round that began then and will end then, as far as is known, has only begun."""
    return now_s - began_s <= _JOIN_SHARE * (end_s - began_s)
