"""Agents as closed loops: a prompt, its answer, a wait for tools, the next prompt.

What of a prompt is stored is what its own agent's rounds have stored before, in whole blocks; its last token
is always computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engines.sim.events import Events
from engines.sim.turn import SimTurn
from engines.sim.turn_log import TurnLog
from engines.sim.workload import KEEP_ALL, SimAgent, SimRounds


class _Columns:
    """A session's rounds as lists, which are faster to index than arrays; shared by its agents."""

    def __init__(self, rounds: SimRounds) -> None:
        self.append: list[int] = rounds.append_tokens.tolist()
        self.output: list[int] = rounds.output_tokens.tolist()
        self.wait_s: list[float] = rounds.tool_wait_s.tolist()
        self.keep: list[int] = rounds.keep_tokens.tolist()
        self.total_tokens = sum(self.append) + sum(self.output)


class AgentState:
    """How far an agent has come."""

    __slots__ = (
        "columns",
        "context_tokens",
        "end_s",
        "group",
        "index",
        "next_round",
        "remaining_tokens",
        "start_s",
        "stored_blocks",
        "stored_s",
        "waits",
    )

    def __init__(self, index: int, agent: SimAgent, columns: _Columns, block_tokens: int) -> None:
        self.index = index
        self.columns = columns
        self.group = agent.group
        self.start_s = agent.start_s
        self.end_s: float | None = None
        self.next_round = 0
        self.context_tokens = agent.history_tokens
        self.stored_blocks = (agent.history_tokens + agent.shared_tokens) // block_tokens
        """Leading blocks of its context, or of its first prompt, that are in the store by `stored_s`."""
        self.stored_s = 0.0
        self.waits = False
        """Whether its tools work."""
        self.remaining_tokens = columns.total_tokens
        """That it will still append and generate, the running turn's included."""


class AgentsCluster(Protocol):
    """What serves the agents."""

    def submit(self, agent: AgentState, turn: SimTurn) -> None:
        """Serve a turn, then tell SimAgents.answered."""
        ...

    def begin_wait(self, agent: AgentState) -> None:
        """The agent's tools work; its next turn comes later."""
        ...

    def end_wait(self, agent: AgentState) -> None:
        """They are done."""
        ...

    def cut(self, agent: AgentState, blocks: int) -> None:
        """The agent's context goes on after its first `blocks` only."""
        ...


class SimAgents:
    """All of a simulation's."""

    def __init__(
        self,
        agents: Sequence[SimAgent],
        block_tokens: int,
        events: Events,
        log: TurnLog,
        cluster: AgentsCluster,
    ) -> None:
        shared: dict[int, _Columns] = {}
        for agent in agents:
            if id(agent.rounds) not in shared:
                shared[id(agent.rounds)] = _Columns(agent.rounds)
        self.states = [
            AgentState(index, agent, shared[id(agent.rounds)], block_tokens)
            for index, agent in enumerate(agents)
        ]
        self._block_tokens = block_tokens
        self._events = events
        self._log = log
        self._cluster = cluster

    def start(self) -> None:
        for state in self.states:
            self._events.at(state.start_s, self._begin_round, state)

    def answered(self, turn: SimTurn, context_blocks: int, stored_s: float) -> None:
        """The turn is over; `context_blocks` of its context are stored at `stored_s`."""
        state, now_s = self.states[turn.agent], self._events.now_s
        columns, number = state.columns, state.next_round
        state.next_round += 1
        state.context_tokens = turn.prompt_tokens + turn.output_tokens
        state.stored_blocks, state.stored_s = context_blocks, stored_s
        state.remaining_tokens -= columns.append[number] + columns.output[number]
        wait_s = columns.wait_s[number]
        self._log.ended(turn, now_s, wait_s)
        if state.next_round == len(columns.append):
            state.end_s = now_s
        else:
            state.waits = wait_s > 0
            if state.waits:
                self._cluster.begin_wait(state)
            self._events.at(now_s + wait_s, self._begin_round, state)

    def _begin_round(self, state: AgentState) -> None:
        columns, number = state.columns, state.next_round
        keep, context = columns.keep[number], state.context_tokens
        kept = context if keep == KEEP_ALL else min(keep, context)
        prompt_tokens = kept + columns.append[number]
        if state.waits:
            state.waits = False
            self._cluster.end_wait(state)
        if kept < context:
            self._cluster.cut(state, kept // self._block_tokens)
        # What is shared beforehand lies in the first round's append, behind what is kept.
        known = prompt_tokens if not number else kept
        hit_blocks = min(state.stored_blocks, known // self._block_tokens)
        hit_blocks = min(hit_blocks, (prompt_tokens - 1) // self._block_tokens)
        row = self._log.first_rows[state.index] + number
        turn = SimTurn(row, state.index, prompt_tokens, columns.output[number], max(hit_blocks, 0))
        now_s = turn.submit_s = turn.since_s = self._events.now_s
        self._log.submitted(turn)
        if hit_blocks > 0 and state.stored_s > now_s:
            turn.persist_wait_s = state.stored_s - now_s
            turn.since_s = state.stored_s
            self._events.at(state.stored_s, self._submit, turn)
        else:
            self._submit(turn)

    def _submit(self, turn: SimTurn) -> None:
        self._cluster.submit(self.states[turn.agent], turn)
