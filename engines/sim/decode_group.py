"""Decode GPUs: prompts are copied in one after the other, then all rows advance a token a step.

Rows join and leave at the ends of steps only, so between two such ends everything is known in closed form: a
step takes s, the next one s + g, as every row's context has grown by a token. GPUs of an expert-parallel
group step together, as fast as the slowest of them. No event per step.

A turn is admitted with all the HBM it may come to need, so none is ever preempted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence

from engines.scheduling.burst import more_may_come, next_look_s
from engines.sim.events import Events
from engines.sim.nodes import SimNode
from engines.sim.spec import SimSpec
from engines.sim.transfers import Transfers
from engines.sim.turn import SimTurn
from engines.types import EngineId


class DecodeGpu:
    """One engine."""

    def __init__(self, engine_id: EngineId, node: SimNode, rail: int, kv_blocks: int) -> None:
        self.engine_id = engine_id
        self.node = node
        self.rail = rail
        self.group: DecodeGroup
        self.kv_blocks = kv_blocks
        self.free_blocks = kv_blocks
        self.num_admitted = 0
        """Turns that are being copied in or decoded."""
        self.waiting: deque[SimTurn] = deque()
        self.copying: deque[SimTurn] = deque()
        """The first of them now."""
        self.rows = 0
        """Turns in its batch."""
        self.context_tokens = 0
        """Tokens that its next step attends to."""


class DecodeGroup:
    """GPUs whose steps end together."""

    def __init__(
        self,
        gpus: Sequence[DecodeGpu],
        spec: SimSpec,
        events: Events,
        transfers: Transfers,
        on_copied: Callable[[SimTurn], None],
        on_finished: Callable[[SimTurn], None],
    ) -> None:
        self._gpus = tuple(gpus)
        self._events = events
        self._transfers = transfers
        self._on_copied = on_copied
        self._on_finished = on_finished
        self._once_s, self._row_s, self._token_s = spec.profile.decode_s
        self._max_requests = spec.cluster.decode_max_requests
        self._block_tokens = spec.block_tokens
        self._token_bytes = 0 if spec.oracle else spec.profile.token_bytes
        self._collective_bytes = spec.profile.num_layers * spec.profile.collective_bytes[1]
        self._rows: list[tuple[int, int, SimTurn]] = []
        """A heap: the step at whose end each row leaves."""
        self._fresh: list[SimTurn] = []
        """Rows that have made no token yet."""
        self._step = 0
        self._at_s = 0.0
        """When step `_step` begins: never before an end of a step that has been told of."""
        self._alarm = 0
        self._linger_s = spec.burst_linger_s
        self._gathered: list[SimTurn] = []
        """Turns that wait, while no row decodes, for the rest of their burst."""
        self.num_steps = 0.0
        """Of all its GPUs, those without rows left out."""
        self.num_tokens = 0.0
        for gpu in gpus:
            gpu.group = self

    def add(self, gpu: DecodeGpu, turn: SimTurn) -> None:
        """The turn's prompt is in staging memory, its first token known, and there are more to make."""
        gpu.waiting.append(turn)
        self._admit(gpu)

    # -- copying in ----------------------------------------------------------------------------------

    def _admit(self, gpu: DecodeGpu) -> None:
        while gpu.waiting and gpu.num_admitted < self._max_requests:
            turn = gpu.waiting[0]
            blocks = self._blocks_of(turn)
            if blocks > gpu.free_blocks:
                return
            gpu.waiting.popleft()
            gpu.free_blocks -= blocks
            gpu.num_admitted += 1
            turn.queue_s += self._events.now_s - turn.since_s
            turn.since_s = self._events.now_s
            gpu.copying.append(turn)
            if len(gpu.copying) == 1:
                self._copy(gpu)

    def _copy(self, gpu: DecodeGpu) -> None:
        links = (*gpu.node.copy_links(gpu.rail), gpu.node.dram)
        nbytes = gpu.copying[0].prompt_tokens * self._token_bytes
        self._transfers.carry(links, nbytes, self._copied, gpu)

    def _copied(self, gpu: DecodeGpu) -> None:
        turn = gpu.copying.popleft()
        now_s = self._events.now_s
        turn.kv_transfer_s += now_s - turn.since_s
        turn.since_s = now_s
        if gpu.copying:
            self._copy(gpu)
        if self._linger_s and not self._rows:
            self._gathered.append(turn)
            self._gather(None)
        else:
            self._join(gpu, turn)
        self._on_copied(turn)

    def _gather(self, _: object) -> None:
        """Begin to decode, unless more turns are coming."""
        if not self._gathered:
            return
        now_s = self._events.now_s
        first_s, last_s = self._gathered[0].since_s, self._gathered[-1].since_s
        if more_may_come(
            since_first_s=now_s - first_s,
            since_last_s=now_s - last_s,
            num_on_their_way=sum(len(gpu.copying) for gpu in self._gpus),
            linger_s=self._linger_s,
        ):
            self._events.at(next_look_s(first_s, last_s, now_s, self._linger_s), self._gather)
            return
        gathered, self._gathered = self._gathered, []
        for turn in gathered:
            self._join(turn.decode_gpu, turn)

    # -- steps ---------------------------------------------------------------------------------------

    def _join(self, gpu: DecodeGpu, turn: SimTurn) -> None:
        """It decodes from the next step on."""
        now_s = self._events.now_s
        if self._rows:
            self._advance(self._steps_until(now_s))
        else:
            self._at_s = now_s
        gpu.rows += 1
        gpu.context_tokens += turn.prompt_tokens + 1
        turn.finish_step = self._step + turn.output_tokens - 1
        heapq.heappush(self._rows, (turn.finish_step, turn.row, turn))
        self._fresh.append(turn)
        self._changed([gpu])

    def _due(self, alarm: int) -> None:
        """Rows have made their last token, unless the batch has changed since this was set."""
        if alarm != self._alarm:
            return
        self._advance(self._rows[0][0] - self._step)
        self._at_s = self._events.now_s  # the same but for rounding
        left: list[SimTurn] = []
        while self._rows and self._rows[0][0] == self._step:
            left.append(heapq.heappop(self._rows)[2])
        for turn in left:
            gpu = turn.decode_gpu
            gpu.rows -= 1
            gpu.context_tokens -= turn.prompt_tokens + turn.output_tokens
            gpu.free_blocks += self._blocks_of(turn)
            gpu.num_admitted -= 1
            turn.decode_s += self._at_s - turn.since_s
            turn.since_s = self._at_s
        gpus = list({turn.decode_gpu.engine_id: turn.decode_gpu for turn in left}.values())
        self._changed(gpus)
        for gpu in gpus:
            self._admit(gpu)
        for turn in left:
            self._on_finished(turn)

    def _changed(self, gpus: Sequence[DecodeGpu]) -> None:
        """Rows joined or left these GPUs: when the next ones leave is different now."""
        step_s, growth_s = self._pace()
        for gpu in gpus if self._collective_bytes else ():
            model_rate = self._collective_bytes * gpu.rows / step_s
            gpu.node.cnic_in[gpu.rail].give_model(model_rate)
            gpu.node.cnic_out[gpu.rail].give_model(model_rate)
        self._alarm += 1
        if self._rows:
            steps = self._rows[0][0] - self._step
            end_s = self._at_s + _time_of(steps, step_s, growth_s)
            self._events.at(max(end_s, self._events.now_s), self._due, self._alarm)

    def _pace(self) -> tuple[float, float]:
        """Seconds of the next step, and by how much each later one takes longer."""
        slowest = self._gpus[0] if len(self._gpus) == 1 else max(self._gpus, key=self._share_s)
        return self._once_s + self._share_s(slowest), self._token_s * slowest.rows

    def _share_s(self, gpu: DecodeGpu) -> float:
        return self._row_s * gpu.rows + self._token_s * gpu.context_tokens

    def _steps_until(self, time_s: float) -> int:
        """Steps that will have ended when one can begin at `time_s` or later."""
        wait_s = time_s - self._at_s
        if wait_s <= 0:
            return 0
        step_s, growth_s = self._pace()
        # Solves steps x (step_s - growth_s / 2) + growth_s / 2 x steps^2 = wait_s.
        first = step_s - growth_s / 2
        steps = math.ceil(2 * wait_s / (first + math.sqrt(first * first + 2 * growth_s * wait_s)) - 1e-9)
        return min(steps, self._rows[0][0] - self._step)

    def _advance(self, steps: int) -> None:
        """So many steps pass with the rows there are."""
        if not steps:
            return
        step_s, growth_s = self._pace()
        for turn in self._fresh:
            turn.second_token_s = self._at_s + step_s
        self._fresh.clear()
        self._at_s += _time_of(steps, step_s, growth_s)
        self._step += steps
        for gpu in self._gpus:
            if gpu.rows:
                gpu.context_tokens += steps * gpu.rows
                self.num_steps += steps
                self.num_tokens += steps * gpu.rows

    def _blocks_of(self, turn: SimTurn) -> int:
        return -(-(turn.prompt_tokens + turn.output_tokens) // self._block_tokens)


def _time_of(steps: int, step_s: float, growth_s: float) -> float:
    """Seconds of so many steps, the first of which takes `step_s`."""
    return steps * step_s + growth_s * steps * (steps - 1) / 2
