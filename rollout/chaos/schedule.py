"""Which faults come when: drawn from a seed, so that a run can be repeated.

Pure. What a fault does is rollout.chaos.injector's; the driver is killed by scripts/chaos itself.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What is done, and to which kind of part."""

    KILL_ENGINE = "kill_engine"
    STOP_ENGINE = "stop_engine"
    KILL_NODE = "kill_node"
    STOP_NODE = "stop_node"
    KILL_WORKER = "kill_worker"
    STOP_WORKER = "stop_worker"
    KILL_SCHEDULER = "kill_scheduler"
    STOP_SCHEDULER = "stop_scheduler"
    KILL_DRIVER = "kill_driver"
    CORRUPT_BLOCKS = "corrupt_blocks"
    FILL_DISK = "fill_disk"
    UPDATE_WEIGHTS = "update_weights"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    number: int
    at_s: float
    """Since the run began."""
    kind: FaultKind
    seed: int
    """Decides the rest: which part, for how long, which bits."""


def draw_faults(
    seed: int, duration_s: float, every_s: float, kinds: Collection[FaultKind] = tuple(FaultKind)
) -> list[Fault]:
    """Faults `every_s` on average; each kind comes before any comes again, in a new order each time."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    order: list[FaultKind] = []
    at_s = 0.0
    while True:
        at_s += every_s * rng.uniform(0.5, 1.5)
        if at_s >= duration_s or not kinds:
            return faults
        if not order:
            order = sorted(kinds)
            rng.shuffle(order)
        faults.append(Fault(len(faults), at_s, order.pop(), rng.randrange(2**32)))
