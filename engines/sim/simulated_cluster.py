"""A cluster and its agents in virtual time: every part of it, and the way of a turn through them.

agent -> scheduler (engines, slots) -> storage NICs -> prefill GPU -> decode GPU -> agent
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from engines.scheduling.prefill_times import PrefillTimes
from engines.sim.agents import AgentState, SimAgents
from engines.sim.decode_group import DecodeGpu, DecodeGroup
from engines.sim.events import Events
from engines.sim.max_min import MaxMin
from engines.sim.nodes import SimNode, build_nodes
from engines.sim.prefill_group import ForwardLog, PrefillGpu, PrefillGroup, PrefillPolicy
from engines.sim.result import TurnTable
from engines.sim.sim_scheduler import SimParts, SimScheduler
from engines.sim.snic import Read, SimSnic
from engines.sim.snic_windows import SnicWindows
from engines.sim.spec import SimSpec
from engines.sim.transfers import ClosedForm, Transfers
from engines.sim.turn import SimTurn
from engines.sim.turn_log import TurnLog
from engines.sim.workload import SimAgent
from engines.types import EngineId, EngineRole

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Watch:
    """Somebody who looks at the turns so far from time to time."""

    every_s: float
    """Between two looks, in virtual time."""
    is_enough: Callable[[TurnTable, float], bool]
    """Whether the simulation may end at this time."""


class SimulatedCluster:
    """One simulation, from `run` to the columns that are read off it."""

    def __init__(self, spec: SimSpec, agents: Sequence[SimAgent], log: BinaryIO | None = None) -> None:
        """What the policy is told and decides is written to `log` (engines.decision_log)."""
        self._spec = spec
        self.events = Events()
        self.nodes, self.store = build_nodes(spec)
        self.turns = TurnLog(agents)
        self.windows = SnicWindows(len(self.nodes))
        self.forwards = ForwardLog()
        self.dram_bytes = 0.0
        transfers: Transfers
        if spec.sharing == "max_min":
            transfers = MaxMin(self.events, spec.profile.num_layers, layerwise=spec.layerwise)
        else:
            transfers = ClosedForm(self.events, spec.profile.num_layers, layerwise=spec.layerwise)
        policy = PrefillPolicy(spec)
        prefill_gpus = [PrefillGpu(*place) for place in _places(spec, self.nodes, EngineRole.PREFILL)]
        kv_blocks = spec.cluster.decode_kv_bytes // spec.block_bytes
        decode_gpus = [DecodeGpu(*place, kv_blocks) for place in _places(spec, self.nodes, EngineRole.DECODE)]
        for number, prefill in enumerate(_groups(prefill_gpus, spec.cluster.prefill_ep_nodes, spec)):
            PrefillGroup(number, prefill, policy, self.events, transfers, self.forwards, self._prefilled)
        self.decode_groups = [
            DecodeGroup(decode, spec, self.events, transfers, self._copied, self._finished)
            for decode in _groups(decode_gpus, spec.cluster.decode_ep_nodes, spec)
        ]
        snics = [
            SimSnic(node, self.events, transfers, self.windows, spec.block_bytes, self._block_read)
            for node in self.nodes
        ]
        self.snics = snics
        self._snics = {node.index: snic for node, snic in zip(self.nodes, snics, strict=True)}
        self.scheduler = SimScheduler(
            spec,
            self.events,
            PrefillTimes(spec.scheduler.estimate_coefficients, policy.times.forward_coefficients()),
            SimParts(snics, prefill_gpus, decode_gpus),
            self._read,
            log=log,
        )
        self.agents = SimAgents(agents, spec.block_tokens, self.events, self.turns, self)

    def run(self, watch: Watch | None = None) -> None:
        """Until all agents are done, or the horizon, or `watch` has seen enough."""
        self.agents.start()
        if watch is not None:
            self.events.at(watch.every_s, self._look, watch)
        horizon_s = self._spec.horizon_s
        with _without_collector():
            self.events.run(math.inf if horizon_s is None else horizon_s)

    def _look(self, watch: Watch) -> None:
        if watch.is_enough(self.turns.table(), self.events.now_s):
            self.events.drop_all()
        elif self.events.has_more:
            self.events.at(self.events.now_s + watch.every_s, self._look, watch)

    # -- the way of a turn ---------------------------------------------------------------------------

    def submit(self, agent: AgentState, turn: SimTurn) -> None:
        self.scheduler.submit(turn, remaining_tokens=agent.remaining_tokens, group=agent.group)

    def begin_wait(self, agent: AgentState) -> None:
        if self.scheduler.ahead.is_on:
            self.events.at(max(agent.stored_s, self.events.now_s), self._read_ahead, agent)

    def end_wait(self, agent: AgentState) -> None:
        self.scheduler.ahead.end(agent.index)

    def _read_ahead(self, agent: AgentState) -> None:
        """Its context is stored by now; unless its next turn has begun."""
        if agent.waits:
            self.scheduler.ahead.begin(agent.index, agent.stored_blocks)

    def cut(self, agent: AgentState, blocks: int) -> None:
        self.scheduler.cut(agent.index, blocks)

    def _block_read(self, snic: SimSnic, read: Read) -> None:
        self.scheduler.read(snic, read)

    def _read(self, turn: SimTurn) -> None:
        turn.prefill_gpu.group.add(turn.prefill_gpu, turn)

    def _prefilled(self, turn: SimTurn) -> None:
        """The decode node has the whole prompt and its first token."""
        block_tokens = self._spec.block_tokens
        turn.first_token_s = self.events.now_s
        self.turns.first_token(turn, turn.hit_blocks * block_tokens)
        self.dram_bytes += turn.dram_blocks * self._spec.block_bytes
        self.scheduler.prefilled(turn)
        self._persist(turn, turn.prompt_tokens // block_tokens - turn.stored_blocks)
        if turn.output_tokens > 1:
            turn.decode_gpu.group.add(turn.decode_gpu, turn)
            return
        self.scheduler.release(turn)
        self._finished(turn)

    def _copied(self, turn: SimTurn) -> None:
        self.scheduler.release(turn)

    def _finished(self, turn: SimTurn) -> None:
        block_tokens = self._spec.block_tokens
        context_blocks = (turn.prompt_tokens + turn.output_tokens - 1) // block_tokens
        stored_s = self._persist(turn, context_blocks - turn.prompt_tokens // block_tokens)
        self.scheduler.finished(turn)
        self.agents.answered(turn, context_blocks, stored_s)

    def _persist(self, turn: SimTurn, blocks: int) -> float:
        """Write blocks of the turn's through its decode node; when they are stored."""
        if self._spec.oracle:
            return self.events.now_s
        return self._snics[turn.decode_gpu.node.index].write(blocks * self._spec.block_bytes)


@contextmanager
def _without_collector() -> Iterator[None]:
    """A simulation makes no cycles that need collecting; looking for them takes time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _places(spec: SimSpec, nodes: Sequence[SimNode], role: EngineRole) -> list[tuple[EngineId, SimNode, int]]:
    """Engines of a role: id, node and number in the node. Ids sort in this order."""
    return [
        (EngineId(f"{node.node_id}/{rail:02d}"), node, rail)
        for node in nodes
        if node.role is role
        for rail in range(spec.cluster.gpus_per_node)
    ]


def _groups(gpus: Sequence[T], ep_nodes: int, spec: SimSpec) -> list[Sequence[T]]:
    """GPUs that compute together: those of `ep_nodes` nodes, or each by itself."""
    size = ep_nodes * spec.cluster.gpus_per_node or 1
    return [gpus[start : start + size] for start in range(0, len(gpus), size)]
