"""How evenly work was spread: over storage NICs in windows of a second, over GPUs in prefill forwards.

The two figures of DualPath (arXiv 2602.21548, section 7.4): the busiest over the mean, averaged over time.
"""

from __future__ import annotations

from engines.sim.result import ForwardTable, SnicUse

_ENOUGH = 0.1
"""Windows with less than this share of the mean window's bytes tell nothing."""


def snic_max_over_avg(use: SnicUse) -> float | None:
    """Of the bytes read through each storage NIC in a second; None if none were."""
    sums = use.read_bytes.sum(axis=1)
    if not sums.size or not sums.any():
        return None
    told = use.read_bytes[sums > _ENOUGH * sums[sums > 0].mean()]
    return float((told.max(axis=1) / told.mean(axis=1)).mean())


def attention_max_over_avg(forwards: ForwardTable, until_s: float = float("inf")) -> float | None:
    """Longest attention of a round's GPUs over their mean, over rounds that began by `until_s`.

    Rounds of one GPU, and those in which nobody computed, are left out; None if none is left.
    """
    told = (forwards.members > 1) & (forwards.attention_sum_s > 0) & (forwards.began_s <= until_s)
    if not told.any():
        return None
    longest, whole = forwards.attention_max_s[told], forwards.attention_sum_s[told]
    return float((longest * forwards.members[told] / whole).mean())
