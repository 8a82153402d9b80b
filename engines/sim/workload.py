"""What a simulated cluster is asked to do: agents, each a closed loop of rounds told in token counts.

An agent's context is its own: what is stored of it are the whole blocks of what its earlier rounds computed,
and what the caller says was there before. Nothing here knows a trace format, a clock or a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Seconds = npt.NDArray[np.float32]
KEEP_ALL = -1


@dataclass(frozen=True, slots=True, eq=False)
class SimRounds:
    """One session's rounds in columns [rounds]. Agents that replay the same session share one object.

    Raises ValueError, naming the column and the round, for a number out of range.
    """

    append_tokens: Tokens
    """What each prompt has beyond the context it keeps."""
    output_tokens: Tokens
    tool_wait_s: Seconds
    """Time between a round's answer and the next round's prompt."""
    keep_tokens: Tokens
    """Tokens kept of the context so far; KEEP_ALL: all of it."""

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in self.__slots__}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1 or not lengths.pop():
            raise ValueError(
                f"rounds need columns of one length >= 1, got {list(map(len, columns.values()))}"
            )
        least = {"append_tokens": 0, "output_tokens": 1, "tool_wait_s": 0, "keep_tokens": KEEP_ALL}
        for name, column in columns.items():
            wrong = np.flatnonzero(~(column >= least[name]))
            if len(wrong):
                raise ValueError(
                    f"{name} must be >= {least[name]}, got {column[wrong[0]]} in round {wrong[0]}"
                )

    def __len__(self) -> int:
        return len(self.append_tokens)


@dataclass(frozen=True, slots=True)
class SimAgent:
    """One agent: it submits a round, waits for its answer and its tools, and submits the next."""

    agent_id: str
    rounds: SimRounds
    history_tokens: int = 0
    """Context before the first round; its whole blocks are stored when the simulation starts."""
    shared_tokens: int = 0
    """Leading tokens of the first round's append that are stored too, as other agents begin alike."""
    start_s: float = 0.0
    group: str = ""
    """Its trajectory group, whose turns an order may keep together."""

    def __post_init__(self) -> None:
        if self.history_tokens < 0 or self.shared_tokens < 0:
            raise ValueError(f"agent {self.agent_id} needs history and shared tokens >= 0")
        if not 0 <= self.start_s < math.inf:
            raise ValueError(f"agent {self.agent_id} must start at 0 s or later, got {self.start_s}")

    def prompts(self) -> Iterator[tuple[int, int]]:
        """Tokens of each round's prompt, and of its context at its end."""
        context = self.history_tokens
        for append, output, keep in zip(
            self.rounds.append_tokens.tolist(),
            self.rounds.output_tokens.tolist(),
            self.rounds.keep_tokens.tolist(),
            strict=True,
        ):
            prompt = (context if keep == KEEP_ALL else min(keep, context)) + append
            context = prompt + output
            yield prompt, context

    @property
    def longest_context_tokens(self) -> int:
        return max(context for _, context in self.prompts())
