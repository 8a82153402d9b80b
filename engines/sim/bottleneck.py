"""What held a simulation up: how much of each resource it used, and the one it ran short of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engines.sim.result import SimResult
from engines.sim.spec import SimSpec
from engines.types import PHASES

BUSY = 0.6
"""A resource that was in use for this share of the time is what held the run up; if none was, its turns only
waited for one another."""


@dataclass(frozen=True, slots=True)
class Use:
    """Of all resources of one kind."""

    resource: str
    share: float
    """Of what they could have done from the first start to the last finish, 0..1."""


def resource_uses(spec: SimSpec, result: SimResult) -> tuple[Use, ...]:
    """Every kind of link, and the prefill GPUs; the most used first. Empty if nothing finished."""
    if not result.jct_s > 0:
        return ()
    uses = [Use("prefill GPUs", _computing_s(spec, result) / result.jct_s)]
    uses += [
        Use(link.link, link.busy_s / result.jct_s)
        for link in result.links
        if math.isfinite(link.bytes_per_s) and link.total_bytes
    ]
    return tuple(sorted(uses, key=lambda use: -use.share))


def _computing_s(spec: SimSpec, result: SimResult) -> float:
    """Seconds for which the mean prefill GPU computed or waited for the slowest of its group to."""
    forwards, cluster, profile = result.forwards, spec.cluster, spec.profile
    in_group = max(cluster.prefill_ep_nodes * cluster.gpus_per_node, 1)
    once, new = (profile.num_layers * weight for weight in profile.rest_s)
    rest_s = once + new * forwards.new_tokens / np.maximum(forwards.members, 1)
    busy_s = float(np.sum(forwards.attention_max_s + rest_s)) * in_group
    return busy_s / (cluster.prefill_nodes * cluster.gpus_per_node)


def phase_seconds(result: SimResult) -> dict[str, float]:
    """Where the time of all turns went."""
    return {phase: float(np.nansum(result.turns.phases[phase], dtype=np.float64)) for phase in PHASES}


def bottleneck(spec: SimSpec, result: SimResult) -> str:
    """One phrase for people: the busiest resource, or what a turn spends most time in."""
    uses = resource_uses(spec, result)
    if not uses:
        return "nothing finished"
    if uses[0].share >= BUSY:
        return f"{uses[0].resource} ({uses[0].share:.0%} busy)"
    seconds = phase_seconds(result)
    total = sum(seconds.values())
    phase = max(seconds, key=lambda name: seconds[name])
    told = f"{phase}, {seconds[phase] / total:.0%} of a turn"
    return f"{told}; {uses[0].resource} only {uses[0].share:.0%} busy"
