"""The whole policy at work: how evenly the storage NICs of 2 prefill and 4 decode nodes read.

NICs are first in, first out and never idle while they have something; turns come at random, at three quarters
of what all NICs carry. Balance = the busiest NIC's bytes over the mean, in windows of a second, averaged.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.read_sides import SideLoad, prefill_share, shorter_side
from engines.types import EngineId, EngineInfo, EngineRole, NodeId, ReadSide, RequestId
from tests.engines.scheduling.turns import settings, turn

NIC_TOKENS_PER_S = 1_250_000.0
BLOCK_TOKENS = 64
ARRIVALS_PER_S = 0.75 * 6 * NIC_TOKENS_PER_S / 32_000
SECONDS = 15


@dataclass
class Nics:
    """Fluid storage NICs, and what is under way on them."""

    placement: ClusterPlacement
    free_at_s: dict[NodeId, float] = field(default_factory=lambda: defaultdict(float))
    read: dict[NodeId, int] = field(default_factory=lambda: defaultdict(int))
    by_second: dict[tuple[int, NodeId], float] = field(default_factory=lambda: defaultdict(float))
    ends: list[tuple[float, NodeId, int]] = field(default_factory=list)

    def begin(self, node_id: NodeId, tokens: int, now_s: float) -> float:
        start_s = max(now_s, self.free_at_s[node_id])
        end_s = self.free_at_s[node_id] = start_s + tokens / NIC_TOKENS_PER_S
        self.by_second[int((start_s + end_s) / 2), node_id] += tokens
        heapq.heappush(self.ends, (end_s, node_id, tokens))
        return end_s

    def report(self, now_s: float) -> None:
        while self.ends and self.ends[0][0] <= now_s:
            _, node_id, tokens = heapq.heappop(self.ends)
            self.read[node_id] += tokens
            self.placement.queues.report(node_id, self.read[node_id])

    def balance(self) -> float:
        ratios = []
        for second in range(3, SECONDS - 1):
            tokens = [self.by_second[second, node_id] for node_id in self.free_at_s]
            ratios.append(max(tokens) * len(tokens) / sum(tokens))
        return sum(ratios) / len(ratios)


def open_cluster(**changes: Any) -> ClusterPlacement:
    placement = ClusterPlacement(
        settings(**changes), load_limit_tokens=780_000, read_queue_limit_tokens=3_750_000
    )
    for role, nodes in ((EngineRole.PREFILL, 2), (EngineRole.DECODE, 4)):
        for number in range(nodes):
            node_id = NodeId(f"{role}-{number}")
            placement.add_node(node_id)
            for engine in range(8):
                name = EngineId(f"{node_id}-{engine}")
                placement.add_engine(EngineInfo(name, node_id, role, 10_000_000))
    return placement


def blocks_on_prefill(plan: str, num_blocks: int, number: int, sides: tuple[SideLoad, SideLoad]) -> int:
    if plan == "split":
        return prefill_share(num_blocks, BLOCK_TOKENS, *sides)
    on_prefill = number % 2 == 0 if plan == "alternate" else shorter_side(*sides) is ReadSide.PREFILL
    return num_blocks if on_prefill else 0


def balance(plan: str, **changes: Any) -> float:
    placement, rng, now_s = open_cluster(**changes), random.Random(0), 0.0
    nics, endings = Nics(placement), list[tuple[float, RequestId, bool]]()

    def start(pair: EnginePair, number: int) -> None:
        ahead = placement.read_tokens_ahead(pair, now_s)
        blocks = pair.turn.hit_tokens // BLOCK_TOKENS
        sides = SideLoad(ahead[0], NIC_TOKENS_PER_S), SideLoad(ahead[1], NIC_TOKENS_PER_S)
        here = blocks_on_prefill(plan, blocks, number, sides) * BLOCK_TOKENS
        placement.plan_reads(pair, here, pair.turn.hit_tokens - here, now_s)
        ends = [nics.begin(pair.prefill.node_id, here, now_s)] if here else []
        if here < pair.turn.hit_tokens:
            ends.append(nics.begin(pair.decode.node_id, pair.turn.hit_tokens - here, now_s))
        heapq.heappush(endings, (max(ends) + rng.uniform(0.1, 0.4), pair.turn.request_id, False))
        heapq.heappush(endings, (max(ends) + rng.uniform(7, 11), pair.turn.request_id, True))

    for number in range(round(SECONDS * ARRIVALS_PER_S)):
        now_s += rng.expovariate(ARRIVALS_PER_S)
        nics.report(now_s)
        while endings and endings[0][0] <= now_s:
            _, request_id, over = heapq.heappop(endings)
            (placement.finished if over else placement.prefilled)(request_id)
        prompt = int(min(64_000, rng.lognormvariate(10.2, 0.6)))
        hit = int(prompt * 0.987) // BLOCK_TOKENS * BLOCK_TOKENS
        placement.submit(turn(f"t{number}", prompt, hit, arrived_s=now_s, output_tokens=176))
        for pair in placement.place(now_s):
            start(pair, number)
    placement.check()
    return nics.balance()


@pytest.mark.parametrize("plan", ["dual", "split"])
def test_nics_read_evenly_where_round_robin_does_not(plan: str) -> None:
    assert balance("alternate", placement="round_robin") >= 1.3
    assert balance(plan, read_memory_s=1.0) <= 1.10


@pytest.mark.parametrize("plan", ["dual", "split"])
def test_queues_alone_leave_nics_less_even_than_queues_and_memory(plan: str) -> None:
    assert balance(plan, read_memory_s=0.0) > balance(plan, read_memory_s=1.0) + 0.05
