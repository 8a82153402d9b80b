"""Prefill GPUs: which prompts they compute when, and for how long.

What a forward takes in is decided by engines.scheduling.prefill_quota, as in a real engine. GPUs of an
expert-parallel group compute in rounds: a GPU joins a round that has only begun, else it waits for the next,
and a round ends when its slowest member does (engines.scheduling.forward_round).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from engines.model.step_time import StepTimes
from engines.scheduling.burst import more_may_come, next_look_s
from engines.scheduling.estimate import PromptWork
from engines.scheduling.forward_round import may_join
from engines.scheduling.prefill_estimates import PrefillEstimates, PrefillProfile
from engines.scheduling.prefill_quota import PromptRest, pick_chunks
from engines.sim.events import Events
from engines.sim.nodes import SimNode
from engines.sim.result import ForwardTable
from engines.sim.spec import SimSpec
from engines.sim.transfers import Forward, ForwardTimes, LayerMove, Transfers
from engines.sim.turn import SimTurn
from engines.types import EngineId


class PrefillGpu:
    """One engine."""

    def __init__(self, engine_id: EngineId, node: SimNode, rail: int) -> None:
        self.engine_id = engine_id
        self.node = node
        self.rail = rail
        self.group: PrefillGroup
        self.ready: list[SimTurn] = []
        """Prompts whose hits are in staging memory, in the order they came."""
        self.batch: list[tuple[SimTurn, int]] = []
        """What it computes now, and how many tokens of each; empty while it does not."""
        self.num_reading = 0
        """Turns whose hits are being read for it."""
        self.alarm_s = -math.inf
        """When it last meant to look again whether more prompts come."""
        self.began_s = 0.0
        self.times: ForwardTimes


class PrefillPolicy:
    """What all prefill GPUs do alike: batches and times.

    A GPU's forwards take what the profile says, so an estimate that starts from the profile has nothing to
    learn: there is one for all of them.
    """

    def __init__(self, spec: SimSpec) -> None:
        self.times = StepTimes(spec.profile, 1.0)
        self._estimates = PrefillEstimates(
            spec.scheduler,
            spec.profile.num_layers,
            PrefillProfile(self.times.attention_coefficients(), self.times.forward_coefficients(), 1.0),
            in_lockstep=spec.cluster.prefill_ep_nodes > 0,
        )
        hbm_tokens = spec.cluster.prefill_hbm_bytes // spec.profile.token_bytes
        self._quota = self._estimates.quota(
            limit_tokens=spec.prefill_batch_tokens,
            limit_kv_tokens=math.inf if spec.layerwise else hbm_tokens,
            block_tokens=spec.block_tokens,
        )
        self.block_tokens = spec.block_tokens
        self.layer_bytes = 0 if spec.oracle else spec.profile.layer_bytes
        self.collective_bytes = spec.profile.collective_bytes[0]
        self.linger_s = spec.burst_linger_s

    def pick(self, ready: Sequence[SimTurn]) -> list[tuple[SimTurn, int]]:
        chunks = pick_chunks([turn.rest for turn in ready], self._estimates.layer_attention, self._quota)
        return [(ready[chunk.index], chunk.new_tokens) for chunk in chunks]


class PrefillGroup:
    """GPUs that compute in rounds; a group of one computes whenever it has prompts."""

    def __init__(
        self,
        number: int,
        gpus: Sequence[PrefillGpu],
        policy: PrefillPolicy,
        events: Events,
        transfers: Transfers,
        log: ForwardLog,
        on_prefilled: Callable[[SimTurn], None],
    ) -> None:
        self._number = number
        self._gpus = tuple(gpus)
        self._policy = policy
        self._events = events
        self._transfers = transfers
        self._log = log
        self._on_prefilled = on_prefilled
        self._members: list[PrefillGpu] = []
        """Of the round that runs."""
        self._num_at_work = 0
        self._began_s = self._expected_end_s = 0.0
        for gpu in gpus:
            gpu.group = self

    def add(self, gpu: PrefillGpu, turn: SimTurn) -> None:
        """The turn's hit is in staging memory."""
        gpu.ready.append(turn)
        if not gpu.batch:
            self._start(gpu)

    def _look_again(self, gpu: PrefillGpu) -> None:
        if gpu.ready and not gpu.batch:
            self._start(gpu)

    def _start(self, gpu: PrefillGpu) -> None:
        now_s = self._events.now_s
        if not self._members:
            self._began_s = self._expected_end_s = now_s
        elif not may_join(now_s, self._began_s, self._expected_end_s):
            return
        batch = self._policy.pick(gpu.ready)
        if self._policy.linger_s and self._waits_for_more(gpu, batch):
            return
        gpu.batch = batch
        gpu.began_s = now_s
        del gpu.ready[: len(gpu.batch)]  # a batch is always the first of them
        self._members.append(gpu)
        self._num_at_work += 1
        work = PromptWork()
        for turn, new_tokens in gpu.batch:
            work += PromptWork.of(turn.rest.cached_tokens, new_tokens)
        layer_s = self._policy.times.layer_s(work)
        model_rate = self._policy.collective_bytes * work.new_tokens / layer_s
        gpu.node.cnic_in[gpu.rail].give_model(model_rate)
        gpu.node.cnic_out[gpu.rail].give_model(model_rate)
        gpu.times = self._transfers.forward(Forward(layer_s, *self._moves(gpu)), self._computed, gpu)
        self._expected_end_s = max(self._expected_end_s, now_s + gpu.times.compute_s)
        num_layers = self._policy.times.profile.num_layers
        self._log.member(
            work, num_layers * self._policy.times.attention_s(work), len(gpu.batch), self._number
        )

    def _waits_for_more(self, gpu: PrefillGpu, batch: Sequence[tuple[SimTurn, int]]) -> bool:
        """Whether the batch has room and the rest of a burst is coming; then it looks again later."""
        now_s, linger_s = self._events.now_s, self._policy.linger_s
        first, last = gpu.ready[0], gpu.ready[-1]
        takes_all = len(batch) == len(gpu.ready) and batch[-1][1] == last.rest.new_tokens
        if first.sent_hit or not takes_all:
            return False
        since_first_s, since_last_s = now_s - first.since_s, now_s - last.since_s
        waits = more_may_come(
            since_first_s=since_first_s,
            since_last_s=since_last_s,
            num_on_their_way=gpu.num_reading,
            linger_s=linger_s,
        )
        if waits:
            alarm_s = next_look_s(first.since_s, last.since_s, now_s, linger_s)
            if gpu.alarm_s != alarm_s:
                gpu.alarm_s = alarm_s
                self._events.at(alarm_s, self._look_again, gpu)
        return waits

    def _computed(self, gpu: PrefillGpu) -> None:
        self._num_at_work -= 1
        if self._num_at_work:
            return
        members, self._members = self._members, []
        self._log.end(self._number, self._began_s, self._events.now_s - self._began_s, len(members))
        prefilled = [turn for member in members for turn in self._end(member)]
        for member in self._gpus:
            if member.ready:
                self._start(member)
        for turn in prefilled:
            self._on_prefilled(turn)

    def _end(self, gpu: PrefillGpu) -> list[SimTurn]:
        """The forward is over: its prompts that are computed; the one that was cut goes on first."""
        now_s, times = self._events.now_s, gpu.times
        compute_s = now_s - gpu.began_s - times.load_wait_s - times.send_wait_s
        done, cut = [], []
        for turn, new_tokens in gpu.batch:
            turn.queue_s += gpu.began_s - turn.since_s
            turn.kv_load_s += times.load_wait_s
            turn.kv_transfer_s += times.send_wait_s
            turn.prefill_s += compute_s
            turn.since_s = now_s
            rest = turn.rest
            if new_tokens == rest.new_tokens:
                done.append(turn)
            else:
                turn.rest = PromptRest(rest.cached_tokens + new_tokens, rest.new_tokens - new_tokens)
                turn.sent_hit = True
                cut.append(turn)
        gpu.batch = []
        gpu.ready[:0] = cut
        return done

    def _moves(self, gpu: PrefillGpu) -> tuple[list[LayerMove], list[LayerMove]]:
        """What each layer loads and sends (DualPath, arXiv 2602.21548, section 4.1)."""
        policy, rail, node = self._policy, gpu.rail, gpu.node
        unit = policy.layer_bytes
        if not unit:
            return [], []
        own = 0
        there: dict[SimNode, int] = {}
        to_send: dict[SimNode, int] = {}
        for turn, new_tokens in gpu.batch:
            here = (turn.on_prefill + turn.dram_blocks) * policy.block_tokens
            other = turn.decode_gpu.node
            own += here
            there[other] = there.get(other, 0) + turn.rest.cached_tokens - here
            to_send[other] = to_send.get(other, 0) + new_tokens + (0 if turn.sent_hit else here)
        inward, outward = node.cnic_in[rail], node.cnic_out[rail]
        loads = [LayerMove((node.dram, *node.copy_links(rail)), unit * own)] if own else []
        loads += [
            LayerMove((other.dram, other.cnic_out[rail], inward), unit * tokens)
            for other, tokens in there.items()
            if tokens
        ]
        sends = [
            LayerMove((outward, other.cnic_in[rail], other.dram), unit * tokens)
            for other, tokens in to_send.items()
        ]
        return loads, sends


class ForwardLog:
    """Columns of a ForwardTable, filled round by round; rounds of several groups may run at once."""

    def __init__(self) -> None:
        self._open: dict[int, list[float]] = {}
        self._columns = [array("d") for _ in ForwardTable.__slots__]

    def member(self, work: PromptWork, attention_s: float, num_prompts: int, group: int) -> None:
        """A GPU takes part in the group's round."""
        sums = self._open.setdefault(group, [0.0] * 5)
        sums[0] += num_prompts
        sums[1] += work.new_tokens
        sums[2] += work.kv_tokens
        sums[3] = max(sums[3], attention_s)
        sums[4] += attention_s

    def end(self, group: int, began_s: float, took_s: float, num_members: int) -> None:
        row = (group, began_s, took_s, num_members, *self._open.pop(group))
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def table(self) -> ForwardTable:
        columns = [np.frombuffer(column) if column else np.zeros(0) for column in self._columns]
        group, began_s, took_s, members, prompts, new, kv, attention_max_s, attention_sum_s = columns
        counts = [each.astype(np.int64) for each in (group, members, prompts, new, kv)]
        return ForwardTable(
            group=counts[0],
            began_s=began_s,
            took_s=took_s,
            members=counts[1],
            prompts=counts[2],
            new_tokens=counts[3],
            kv_tokens=counts[4],
            attention_max_s=attention_max_s,
            attention_sum_s=attention_sum_s,
        )
