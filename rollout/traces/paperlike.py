"""Made sessions with the statistics of the paper's data sets (DualPath, arXiv 2602.21548, table 2).

The paper tells means and no distribution, and they do not multiply: 157 turns of 429 + 176 tokens are 95k,
and not 56k. So they are read as means over trajectories of each trajectory's own mean, which many short and
few long trajectories can have. Made here, to fit them all:

    turns       lognormal; its spread is what makes short trajectories have long turns
    tokens      independent of turns: near the longest context, as most run into it
    a turn      appends are larger early on (files are read first), which is what the mean context asks for

Jitter within a session is assumed. Deterministic for a seed; nobody waits for a tool, as where the paper
replays them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rollout.traces.session import Piece, Round, Session

Floats = npt.NDArray[np.float64]
NUM_SESSIONS = 500
"""Of each of the paper's sets."""
_APPEND_SPREAD, _OUTPUT_SPREAD = 1.0, 0.6
"""Of a turn around its session's mean, as the sigma of a lognormal."""
_LEAST_TURN_TOKENS = 32
_LEAST_TURNS = 4
_SOLVE_STEPS = 40
_MOST_SPREAD, _MOST_EARLY = 2.0, 8.0


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """One row of table 2: means over trajectories, in tokens."""

    max_context: int
    turns: float
    append: float
    """A turn, as are the next two."""
    output: float
    context: float
    """Before what a turn appends."""
    total: float
    """Of a trajectory at its end."""

    @property
    def turn(self) -> float:
        return self.append + self.output


PAPER_SETS = {
    "paper-32k": TraceStatistics(32_768, 60, 608, 148, 17_183, 28_639),
    "paper-48k": TraceStatistics(49_152, 106, 474, 172, 25_120, 42_607),
    "paper-64k": TraceStatistics(65_536, 157, 429, 176, 32_721, 55_958),
}


def paperlike_sessions(name: str, seed: int = 0, num_sessions: int = NUM_SESSIONS) -> list[Session]:
    """Sessions of one of PAPER_SETS."""
    wanted, rng = PAPER_SETS[name], np.random.default_rng(seed)
    ranks = (np.arange(num_sessions) + 0.5) / num_sessions
    totals = _totals(wanted, rng.permutation(ranks))
    turns = _turns(wanted, ranks, totals)
    shapes = [_Shape.draw(int(count), rng) for count in turns]
    early = _solve(
        lambda value: _mean_context(wanted, shapes, totals, value), wanted.context, 0.0, _MOST_EARLY
    )
    order = rng.permutation(num_sessions)
    return [
        _session(f"{name}/{place}", *shapes[index].tokens(wanted, totals[index], early))
        for place, index in enumerate(order)
    ]


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a session's tokens are spread over its turns, before they are counted."""

    append: Floats
    output: Floats

    @classmethod
    def draw(cls, turns: int, rng: np.random.Generator) -> _Shape:
        return cls(
            rng.lognormal(0.0, _APPEND_SPREAD, turns),
            rng.lognormal(0.0, _OUTPUT_SPREAD, turns),
        )

    def tokens(
        self, wanted: TraceStatistics, total: float, early: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Appended and generated tokens of each turn: at least one of each, `total` together."""
        turns = len(self.append)
        share = wanted.append / wanted.turn
        append = self.append * np.exp(-early * np.arange(turns) / turns)
        parts = np.empty((turns, 2))
        parts[:, 0] = share * append / append.sum()
        parts[:, 1] = (1 - share) * self.output / self.output.sum()
        ends = np.rint((total - 2 * turns) * np.cumsum(parts.ravel()))
        counts = 1 + np.diff(ends, prepend=0.0).astype(np.int64).reshape(turns, 2)
        return counts[:, 0], counts[:, 1]


def _totals(wanted: TraceStatistics, ranks: Floats) -> Floats:
    """Of each trajectory: a power of a uniform rank, whose mean is the wanted one."""
    share = wanted.total / wanted.max_context
    found: Floats = np.floor(wanted.max_context * ranks ** ((1 - share) / share))
    return found


def _turns(wanted: TraceStatistics, ranks: Floats, totals: Floats) -> Floats:
    """Lognormal, so wide that a turn's mean over trajectories is the wanted one."""
    normal = NormalDist()
    scores = np.array([normal.inv_cdf(rank) for rank in ranks])

    def turns(spread: float) -> Floats:
        shape = np.exp(spread * scores)
        most = totals / _LEAST_TURN_TOKENS

        def mean(factor: float) -> float:
            return float(np.clip(factor * shape, _LEAST_TURNS, most).mean())

        factor = _solve(mean, wanted.turns, 0.0, 4 * wanted.turns)
        found: Floats = np.rint(np.clip(factor * shape, _LEAST_TURNS, most))
        return found

    def turn_tokens(spread: float) -> float:
        return float((totals / turns(spread)).mean())

    return turns(_solve(turn_tokens, wanted.turn, 0.0, _MOST_SPREAD))


def _mean_context(wanted: TraceStatistics, shapes: list[_Shape], totals: Floats, early: float) -> float:
    """Mean over trajectories of the mean context before a turn."""
    means = []
    for shape, total in zip(shapes, totals, strict=True):
        append, output = shape.tokens(wanted, total, early)
        ends = np.cumsum(append + output)
        means.append((ends.sum() - ends[-1]) / len(ends))
    return float(np.mean(means))


def _solve(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a rising function meets `wanted`, by bisection."""
    for _ in range(_SOLVE_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def _session(session_id: str, append: npt.NDArray[np.int64], output: npt.NDArray[np.int64]) -> Session:
    starts = np.cumsum(append) - append
    rounds = tuple(
        Round((Piece(f"{session_id}/appended", start, tokens),), generated)
        for start, tokens, generated in zip(starts.tolist(), append.tolist(), output.tolist(), strict=True)
    )
    return Session(session_id, rounds)
