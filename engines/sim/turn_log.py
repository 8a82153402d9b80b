"""Writes down what became of every turn: columns of fixed size, so that millions of turns fit in memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from engines.sim.result import TurnTable
from engines.sim.turn import SimTurn
from engines.sim.workload import SimAgent
from engines.types import PHASES


class TurnLog:
    """A row for each round of each agent, in that order."""

    def __init__(self, agents: Sequence[SimAgent]) -> None:
        lengths = np.array([len(agent.rounds) for agent in agents], np.int64)
        self.first_rows: list[int] = [0, *np.cumsum(lengths).tolist()]
        """Each agent's first row, and the number of all."""
        self._agents = agents
        num = self.first_rows[-1]
        self._prompt = array("i", bytes(4 * num))
        self._hit = array("i", bytes(4 * num))
        self._submit_s = _unknown("d", num)
        self._end_s = _unknown("d", num)
        self._ttft_s, self._ttst_s, self._tpot_s = (_unknown("f", num) for _ in range(3))
        self._phases = {name: _unknown("f", num) for name in PHASES}

    def submitted(self, turn: SimTurn) -> None:
        self._prompt[turn.row] = turn.prompt_tokens
        self._submit_s[turn.row] = turn.submit_s

    def first_token(self, turn: SimTurn, hit_tokens: int) -> None:
        self._hit[turn.row] = hit_tokens
        self._ttft_s[turn.row] = turn.first_token_s - turn.submit_s

    def ended(self, turn: SimTurn, end_s: float, tool_s: float) -> None:
        row, phases = turn.row, self._phases
        self._end_s[row] = end_s
        if turn.output_tokens > 1:
            self._ttst_s[row] = turn.second_token_s - turn.first_token_s
            self._tpot_s[row] = (end_s - turn.first_token_s) / (turn.output_tokens - 1)
        phases["queue"][row] = turn.queue_s
        phases["buffer_wait"][row] = turn.buffer_wait_s
        phases["kv_load"][row] = turn.kv_load_s
        phases["prefill"][row] = turn.prefill_s
        phases["kv_transfer"][row] = turn.kv_transfer_s
        phases["persist_wait"][row] = turn.persist_wait_s
        phases["decode"][row] = turn.decode_s
        phases["tool"][row] = tool_s
        phases["other"][row] = 0.0

    def table(self) -> TurnTable:
        lengths = np.diff(self.first_rows)
        return TurnTable(
            agent=np.repeat(np.arange(len(self._agents), dtype=np.int32), lengths),
            round=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
            prompt_tokens=np.frombuffer(self._prompt, np.int32),
            hit_tokens=np.frombuffer(self._hit, np.int32),
            output_tokens=np.concatenate([agent.rounds.output_tokens for agent in self._agents]),
            submit_s=np.frombuffer(self._submit_s, np.float64),
            ttft_s=np.frombuffer(self._ttft_s, np.float32),
            ttst_s=np.frombuffer(self._ttst_s, np.float32),
            tpot_s=np.frombuffer(self._tpot_s, np.float32),
            end_s=np.frombuffer(self._end_s, np.float64),
            phases={name: np.frombuffer(column, np.float32) for name, column in self._phases.items()},
        )


def _unknown(typecode: str, num: int) -> array[float]:
    """A column of NaN."""
    return array(typecode, np.full(num, np.nan, typecode).tobytes())
