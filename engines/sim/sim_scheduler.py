"""Does around the placement policy what engines.scheduler does, in virtual time and with counts for blocks.

The policy objects are the real ones: ClusterPlacement, the slot queue, read plans, rebalancing, admission.
What is left out is what goes wrong in a real cluster, and waiting for blocks that others make: agents of a
simulation share nothing that is not stored beforehand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from engines.decision_log import open_placement
from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.estimate import PromptWork
from engines.scheduling.prefill_quota import PromptRest
from engines.scheduling.prefill_times import PrefillTimes
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.read_sides import SideLoad, blocks_on_prefill, sides_read
from engines.sim.decode_group import DecodeGpu
from engines.sim.events import Events
from engines.sim.kept_blocks import KeptBlocks
from engines.sim.nodes import SimNode
from engines.sim.prefetcher import SimPrefetcher
from engines.sim.prefill_group import PrefillGpu
from engines.sim.read_mover import SimReadMover
from engines.sim.snic import Read, SimSnic
from engines.sim.spec import SimSpec
from engines.sim.turn import SimTurn
from engines.slot_queue import SlotQueue
from engines.types import EngineId, EngineInfo, EngineRole, NodeId, ReadSide


@dataclass(frozen=True, slots=True)
class SimParts:
    """What turns are placed on."""

    snics: Sequence[SimSnic]
    prefill_gpus: Sequence[PrefillGpu]
    decode_gpus: Sequence[DecodeGpu]


class SimScheduler:
    """One per simulation."""

    def __init__(
        self,
        spec: SimSpec,
        events: Events,
        times: PrefillTimes,
        parts: SimParts,
        on_read: Callable[[SimTurn], None],
        log: BinaryIO | None = None,
    ) -> None:
        """`on_read` is told of a turn whose hit is in staging memory. Decisions are written to `log`."""
        settings = self._settings = spec.scheduler
        self._spec = spec
        self._events = events
        self._times = times
        self._on_read = on_read
        self._block_bytes = spec.block_bytes
        self._rate = spec.cluster.rates.snic_bytes_per_s or 1.0
        self._tie = ReadSide(settings.read_tie)
        read_limit = sys.maxsize
        if spec.cluster.rates.snic_bytes_per_s is not None:
            read_limit = settings.read_queue_limit_tokens(self._rate, spec.profile.token_bytes)
        self.placement = open_placement(
            settings,
            load_limit_tokens=spec.prefill_load_limit_tokens,
            read_queue_limit_tokens=read_limit,
            log=log,
        )
        self._slot_queue = SlotQueue()
        self._snics = {snic.node.node_id: snic for snic in parts.snics}
        self.kept = {
            snic.node.node_id: KeptBlocks(spec.cluster.dram_bytes // spec.block_bytes)
            for snic in parts.snics
            if snic.node.role is EngineRole.PREFILL
        }
        self._prefill_gpus = {gpu.engine_id: gpu for gpu in parts.prefill_gpus}
        self._decode_gpus = {gpu.engine_id: gpu for gpu in parts.decode_gpus}
        self._join(parts)
        self._waiting: dict[str, SimTurn] = {}
        """Turns that have no slots."""
        self._num_planned = 0
        self._last_fetch_s = -sys.float_info.max
        self._fetch_is_set = False
        self._uses_estimates = settings.order != "fifo"
        num_ahead = settings.prefetch_blocks if settings.prefetch and not spec.oracle else 0
        self.ahead = SimPrefetcher(num_ahead, self.placement, self._snics, self.kept, self._slot_queue)
        self.mover = SimReadMover(spec, self.placement, self._snics, self._slot_queue)

    def _join(self, parts: SimParts) -> None:
        """The policy learns of nodes and engines."""
        for snic in parts.snics:
            self.placement.add_node(snic.node.node_id)
        for prefill in parts.prefill_gpus:
            self.placement.add_engine(EngineInfo(prefill.engine_id, prefill.node.node_id, EngineRole.PREFILL))
        for decode in parts.decode_gpus:
            kv_tokens = decode.kv_blocks * self._spec.block_tokens
            self.placement.add_engine(
                EngineInfo(decode.engine_id, decode.node.node_id, EngineRole.DECODE, kv_tokens)
            )

    # -- the life of a turn --------------------------------------------------------------------------

    def submit(self, turn: SimTurn, *, remaining_tokens: int, group: str) -> None:
        """It waits for engines, and then for slots."""
        hit_tokens = turn.hit_blocks * self._spec.block_tokens
        estimate_s = 0.0
        if self._uses_estimates:
            work = PromptWork.of(hit_tokens, turn.prompt_tokens - hit_tokens)
            estimate_s = self._times.predict_s(work)
        memory_node, num_kept = self.ahead.best_memory(turn.agent, turn.hit_blocks)
        self._waiting[turn.request_id] = turn
        self.placement.submit(
            QueuedTurn(
                turn.request_id,
                arrived_s=turn.submit_s,
                prompt_tokens=turn.prompt_tokens,
                hit_tokens=hit_tokens,
                output_tokens=turn.output_tokens,
                estimate_s=estimate_s,
                remaining_tokens=remaining_tokens,
                memory_node=memory_node,
                memory_tokens=num_kept * self._spec.block_tokens,
                trajectory_group=group,
            )
        )
        self._fetch_soon()

    def read(self, snic: SimSnic, read: Read) -> None:
        """A storage NIC has read blocks, a turn's or ahead."""
        node_id = snic.node.node_id
        if read.turn is None:
            self.ahead.read(node_id)
            return
        self.placement.report_reads(node_id, snic.num_finished * self._spec.block_tokens)
        read.turn.reads_left -= 1
        if not read.turn.reads_left:
            read.turn.prefill_gpu.num_reading -= 1
            self._all_read(read.turn)
        self.mover.report(snic, self._events.now_s)
        self._fetch_soon()
        if self.ahead.is_on and snic.is_idle and node_id in self.kept:
            self.ahead.go_on(node_id)

    def prefilled(self, turn: SimTurn) -> None:
        """The prompt is computed, and all of it is on the decode side."""
        node = turn.prefill_gpu.node
        self.placement.prefilled(turn.request_id)
        self._times.end(turn.prefill_gpu.engine_id, turn.request_id)
        self._end_reads(turn)
        node.free_blocks += turn.on_prefill
        self.kept[node.node_id].keep(turn.agent, turn.dram_blocks + turn.on_prefill)
        self._go_on(node.node_id)

    def release(self, turn: SimTurn) -> None:
        """Nobody needs the prompt in staging memory any more."""
        node = turn.decode_gpu.node
        node.free_blocks += self._prompt_blocks(turn)
        self._go_on(node.node_id)

    def finished(self, turn: SimTurn) -> None:
        """The turn is over."""
        self.placement.finished(turn.request_id)
        self._fetch_soon()

    def cut(self, agent: int, blocks: int) -> None:
        """The agent has dropped all of its context but the first `blocks`."""
        for kept in self.kept.values():
            kept.forget(agent, blocks)

    # -- fetches -------------------------------------------------------------------------------------

    def _go_on(self, node_id: NodeId) -> None:
        """Slots of the node came back."""
        if self._slot_queue.waits_for(node_id):
            self._grant_slots(node_id)
        self._fetch_soon()

    def _fetch_soon(self) -> None:
        """Have all groups fetch: now, or when the time since the last fetch is long enough."""
        if self._fetch_is_set or not self._waiting or not any(self.placement.num_waiting):
            return
        self._fetch_is_set = True
        due_s = max(self._events.now_s, self._last_fetch_s + self._settings.fetch_period_s)
        self._events.at(due_s, self._fetch)

    def _fetch(self, _: object) -> None:
        now_s = self._last_fetch_s = self._events.now_s
        self._fetch_is_set = False
        before = self.placement.num_waiting
        pairs = self.placement.fetch_once(now_s)
        progress = self.placement.num_waiting != before
        for pair in pairs:
            turn = self._waiting[pair.turn.request_id]
            turn.pair = pair
            nodes = (pair.prefill.node_id, pair.decode.node_id)
            # Where nobody is in line it need not stand there.
            if any(map(self._slot_queue.waits_for, nodes)) or not self._grant(turn):
                self._slot_queue.push(turn.request_id, nodes)
                turn.buffer_since_s = now_s
        if progress:
            self._fetch_soon()

    def _grant_slots(self, node_id: NodeId) -> None:
        """Place whoever is first in line on this node, as far as slots go, and then on others."""
        to_look_at = {node_id: None}
        while to_look_at:
            request_id = self._slot_queue.first(to_look_at.popitem()[0])
            if request_id is None:
                continue
            if self._grant(self._waiting[request_id]):
                to_look_at.update(dict.fromkeys(self._slot_queue.leave(request_id)))

    def _grant(self, turn: SimTurn) -> bool:
        """Whether the turn got its slots, and so its place: its reads begin."""
        pair, now_s = turn.pair, self._events.now_s
        assert pair is not None, turn.request_id
        prefill = self._prefill_gpus[EngineId(pair.prefill.engine_id)]
        decode = self._decode_gpus[EngineId(pair.decode.engine_id)]
        num_decode = self._prompt_blocks(turn)
        if num_decode > decode.node.free_blocks:
            return False
        in_dram = min(self.kept[prefill.node.node_id].of(turn.agent), turn.hit_blocks)
        hit_blocks = self._num_worth_loading(turn, pair) if not in_dram else turn.hit_blocks
        share = blocks_on_prefill(
            self._settings.read_plan,
            hit_blocks - in_dram,
            self._block_bytes,
            lambda: self._loads(pair),
            num_planned=self._num_planned,
            tie=self._tie,
        )
        if share > prefill.node.free_blocks:
            return False
        prefill.node.free_blocks -= share
        decode.node.free_blocks -= num_decode
        turn.prefill_gpu, turn.decode_gpu = prefill, decode
        turn.hit_blocks, turn.dram_blocks = hit_blocks, in_dram
        turn.on_prefill, turn.on_decode = share, hit_blocks - in_dram - share
        if turn.buffer_since_s is not None:
            turn.buffer_wait_s = now_s - turn.buffer_since_s
        turn.queue_s += now_s - turn.since_s - turn.buffer_wait_s
        turn.since_s = now_s
        hit_tokens = hit_blocks * self._spec.block_tokens
        turn.rest = PromptRest(hit_tokens, turn.prompt_tokens - hit_tokens)
        if self._settings.load_only_if_faster:
            work = PromptWork.of(hit_tokens, turn.prompt_tokens - hit_tokens)
            self._times.begin(prefill.engine_id, turn.request_id, work)
        del self._waiting[turn.request_id]
        if in_dram:
            self.kept[prefill.node.node_id].keep(turn.agent, in_dram)
        self._begin_reads(turn, pair)
        return True

    # -- reads ---------------------------------------------------------------------------------------

    def _begin_reads(self, turn: SimTurn, pair: EnginePair) -> None:
        tokens = self._spec.block_tokens
        on_prefill, on_decode = turn.on_prefill, turn.on_decode
        self.placement.plan_reads(pair, on_prefill * tokens, on_decode * tokens, self._events.now_s)
        sides = [(pair.prefill.node_id, on_prefill), (pair.decode.node_id, on_decode)]
        reads = [(node_id, blocks) for node_id, blocks in sides if blocks]
        if reads:
            self._num_planned += 1
        if not reads or self._spec.oracle:
            for node_id, blocks in reads:
                self._snics[node_id].skip(blocks)
                self.placement.report_reads(node_id, self._snics[node_id].num_finished * tokens)
            self._all_read(turn)
            return
        turn.reads_left = len(reads)
        turn.prefill_gpu.num_reading += 1
        for node_id, blocks in reads:
            self._snics[node_id].read(turn, blocks)

    def _all_read(self, turn: SimTurn) -> None:
        now_s = self._events.now_s
        turn.kv_load_s += now_s - turn.since_s
        turn.since_s = now_s
        self._on_read(turn)

    def _end_reads(self, turn: SimTurn) -> None:
        tokens = self._spec.block_tokens
        pair = turn.pair
        assert pair is not None, turn.request_id
        open_on = {
            pair.prefill.node_id: turn.on_prefill * tokens,
            pair.decode.node_id: turn.on_decode * tokens,
        }
        self.placement.end_reads(open_on, {})

    def _loads(self, pair: EnginePair) -> tuple[SideLoad, SideLoad]:
        """What counts against reading on either side now; both nodes report first."""
        for node_id in (pair.prefill.node_id, pair.decode.node_id):
            finished = self._snics[node_id].num_finished
            self.placement.report_reads(node_id, finished * self._spec.block_tokens)
        prefill, decode = self.placement.read_tokens_ahead(pair, self._events.now_s)
        unit = self._block_bytes / self._spec.block_tokens
        return SideLoad(prefill * unit, self._rate), SideLoad(decode * unit, self._rate)

    def _num_worth_loading(self, turn: SimTurn, pair: EnginePair) -> int:
        """Blocks of the hit to load; the others are computed sooner."""
        if not self._settings.load_only_if_faster or not turn.hit_blocks:
            return turn.hit_blocks
        return self._times.blocks_to_load(
            pair.prefill.engine_id,
            turn.hit_blocks,
            turn.prompt_tokens,
            sides_read(self._settings.read_plan, *self._loads(pair), self._tie),
            block_bytes=self._block_bytes,
            block_tokens=self._spec.block_tokens,
        )

    def _prompt_blocks(self, turn: SimTurn) -> int:
        return -(-turn.prompt_tokens // self._spec.block_tokens)

    def check(self) -> None:
        """Raise AssertionError unless books agree and, where nobody is at work, all slots are free."""
        self.placement.check()
        for snic in self._snics.values():
            node: SimNode = snic.node
            assert 0 <= node.free_blocks <= node.num_blocks, node.node_id
