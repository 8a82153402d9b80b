"""Which plan a turn gets, and what the planner knows of queues and rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engines.config import ReadPlanName
from engines.read_messages import MovedBlock, ReadReport
from engines.read_planner import ReadPlanner
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.engine_choice import EngineChoice, EnginePair
from engines.types import EngineId, NodeId, ReadRange, ReadSide, RequestId, SlotId
from kvstore.indexed_blocks import IndexedBlock, IndexedBlocks
from kvstore.keys import BlockKey
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from kvstore.store import BlockLocation
from tests.engines.scheduling.turns import scheduler_config, turn

BLOCK_TOKENS = 8
LAYOUT = BlockLayout(KVFormat("float32", 1, (KVGroup("kv", 512),)), BLOCK_TOKENS)
PREFILL, DECODE, OTHER = NodeId("prefill-0"), NodeId("decode-0"), NodeId("decode-1")


def hit_of(num_blocks: int) -> IndexedBlocks:
    return IndexedBlocks.of(
        [
            IndexedBlock(BlockKey(i.to_bytes(16, "big")), BlockLocation("segment", i * 4096, 4096, i))
            for i in range(num_blocks)
        ]
    )


@dataclass
class Bench:
    """A planner, and how many turns it has planned for."""

    planner: ReadPlanner
    placement: ClusterPlacement
    finished: dict[NodeId, int] = field(default_factory=dict)

    def plan(
        self, num_blocks: int, pair: EnginePair, in_dram: set[BlockKey] | None = None
    ) -> tuple[ReadRange, ...]:
        return self.planner.plan(pair, hit_of(num_blocks), in_dram or set(), 0.0)

    def begin(self, name: str, num_blocks: int, decode: NodeId = DECODE) -> list[tuple[str, int]]:
        """Plan and place a turn; what of its hit comes from where."""
        pair = pair_of(name, decode)
        plan = self.plan(num_blocks, pair)
        self.planner.begin(pair, plan, 0.0)
        self.placement.check()
        return [(part.side.value, len(part.blocks)) for part in plan]

    def end(self, name: str, moved: Sequence[MovedBlock] = ()) -> None:
        self.planner.end(RequestId(name), moved)
        self.placement.check()

    def report(self, node_id: NodeId, num_blocks: int, busy_s: float = 0.0) -> None:
        """The node has finished so many blocks since it started, and was busy so long."""
        self.planner.report(
            ReadReport(node_id, num_blocks * BLOCK_TOKENS, num_blocks * 4096, busy_s, unread=())
        )
        self.placement.check()

    @property
    def queues(self) -> list[int]:
        """Blocks that wait at the three nodes."""
        return [self.placement.queues.tokens(node) // BLOCK_TOKENS for node in (PREFILL, DECODE, OTHER)]


def bench(name: ReadPlanName, snic_bytes_per_s: float | None = None, **changes: object) -> Bench:
    config = scheduler_config(read_plan=name, **changes)
    placement = ClusterPlacement(config, load_limit_tokens=1000, read_queue_limit_tokens=1000)
    planner = ReadPlanner(config, placement, LAYOUT, snic_bytes_per_s)
    for node_id in (PREFILL, DECODE, OTHER):
        placement.add_node(node_id)
        planner.add_node(node_id)
    return Bench(planner, placement)


def pair_of(name: str, decode: NodeId = DECODE) -> EnginePair:
    queued = turn(name)
    return EnginePair(
        queued,
        EngineChoice(queued, "prefill-group-0", EngineId("p"), PREFILL),
        EngineChoice(queued, "decode-group-0", EngineId("d"), decode),
    )


def test_dual_reads_where_less_is_left_to_read() -> None:
    made = bench("dual")
    assert made.begin("a", 3) == [("prefill", 3)]
    assert made.begin("b", 1) == [("decode", 1)]
    assert made.begin("c", 1) == [("decode", 1)]
    assert made.begin("d", 4, OTHER) == [("decode", 4)]
    made.end("a")
    assert made.begin("e", 1) == [("prefill", 1)]
    assert made.queues == [1, 2, 4]


def test_split_gives_the_longer_queue_less() -> None:
    made = bench("split")
    assert made.begin("a", 4) == [("prefill", 2), ("decode", 2)]
    made.report(DECODE, 2)
    assert made.begin("b", 4) == [("prefill", 1), ("decode", 3)]
    assert made.begin("c", 1, OTHER) == [("decode", 1)]


def test_a_tie_is_read_on_the_side_that_is_set() -> None:
    assert bench("dual", read_tie="decode").begin("a", 1) == [("decode", 1)]


def test_split_gives_the_slower_node_less_once_it_has_reported() -> None:
    made = bench("split", snic_bytes_per_s=1e6)
    made.begin("a", 100)
    for number in range(1, 50):
        made.report(PREFILL, number, busy_s=number * 4096 / 1e5)
        made.report(DECODE, number, busy_s=number * 4096 / 1e6)
    made.end("a")
    assert made.begin("b", 11) == [("prefill", 1), ("decode", 10)]


def test_without_rates_a_node_that_has_not_read_counts_as_fast_as_the_others() -> None:
    made = bench("split")
    made.report(PREFILL, 4, busy_s=4 * 4096 / 1e6)
    assert made.planner.bytes_per_s(DECODE) == made.planner.bytes_per_s(PREFILL) == pytest.approx(1e6)


def test_alternate_counts_the_turns_that_read_and_no_others() -> None:
    made = bench("alternate")
    assert made.begin("a", 2) == [("prefill", 2)]
    assert made.begin("none", 0) == []
    assert made.plan(2, pair_of("x")) == made.plan(2, pair_of("y")), "nobody was placed"
    assert made.begin("b", 2) == [("decode", 2)]
    assert made.begin("c", 2) == [("prefill", 2)]


@pytest.mark.parametrize("name", ["basic", "dual", "split", "alternate"])
def test_blocks_in_memory_are_read_nowhere_and_wait_in_no_queue(name: ReadPlanName) -> None:
    made = bench(name)
    plan = made.plan(3, pair_of("a"), set(hit_of(3).keys))
    assert {part.side for part in plan} == {ReadSide.DRAM}
    made.planner.begin(pair_of("a"), plan, 0.0)
    assert made.queues == [0, 0, 0]


def test_reads_that_end_twice_or_never_began_change_no_queue() -> None:
    made = bench("split")
    made.begin("a", 4)
    made.begin("b", 4)
    for name in ("a", "a", "nobody"):
        made.end(name)
    assert made.queues == [2, 2, 0]
    made.end("b")
    assert made.queues == [0, 0, 0]


def test_a_report_on_its_way_when_a_turn_ended_is_counted_once() -> None:
    made = bench("split")
    made.begin("a", 8)
    made.begin("b", 4)
    made.end("a")
    assert made.queues == [2, 2, 0]
    made.report(PREFILL, 4)
    assert made.queues == [2, 2, 0]
    made.report(PREFILL, 5)
    assert made.queues == [1, 2, 0]


def test_reads_that_a_node_never_heard_of_are_forgotten_when_nothing_is_left() -> None:
    made = bench("split")
    made.begin("unheard", 8)
    made.end("unheard")
    made.report(PREFILL, 0)
    made.begin("b", 8)
    made.report(PREFILL, 3)
    assert made.queues[0] == 1


def test_a_node_that_was_forgiven_too_much_is_right_again_when_it_has_read_all() -> None:
    made = bench("split")
    made.begin("a", 8)
    made.end("a")
    made.report(PREFILL, 1)  # an old report: it has read 4 by now
    made.report(PREFILL, 4)
    made.begin("b", 8)
    assert made.queues[0] == 4


def test_moved_reads_wait_on_the_other_side_and_end_where_they_were_read() -> None:
    made = bench("split")
    made.begin("a", 8)
    made.planner.move(RequestId("a"), ReadSide.DECODE, 3, 0.0)
    assert made.queues == [1, 7, 0]
    made.report(PREFILL, 4)  # one read, three given up
    made.report(DECODE, 7)
    assert made.queues == [0, 0, 0]
    made.end("a", [MovedBlock(block, ReadSide.DECODE, SlotId(block)) for block in (1, 2, 3)])
    made.begin("b", 8)
    assert made.queues == [4, 4, 0]


def test_what_the_giver_had_begun_is_not_left_in_the_takers_queue() -> None:
    made = bench("split")
    made.begin("a", 8)
    made.begin("b", 8)
    made.planner.move(RequestId("a"), ReadSide.DECODE, 3, 0.0)
    made.report(PREFILL, 4)  # two read, one in flight when the order came; one given up
    made.report(DECODE, 5)
    made.end("a", [MovedBlock(3, ReadSide.DECODE, SlotId(3))])
    assert made.queues == [4, 4, 0]
    assert made.planner.figures()["moved_blocks"] == 1


def test_a_late_or_younger_total_of_a_node_changes_no_rate() -> None:
    made = bench("split")
    made.report(PREFILL, 10, busy_s=1.0)
    before = made.planner.bytes_per_s(PREFILL)
    made.report(PREFILL, 5, busy_s=0.9)
    assert made.planner.bytes_per_s(PREFILL) == before
