"""Simulates cases, each once, and keeps of each the few numbers that figures are made of.

Where `quick` is asked for, agents and rounds are few: the same code and figure names, and no claim.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.sim.balance import attention_max_over_avg, snic_max_over_avg
from engines.sim.bottleneck import bottleneck, phase_seconds, resource_uses
from engines.sim.result import SimResult
from engines.sim.simulate import simulate
from engines.sim.snic_windows import WINDOW_S
from rollout.bench.snic_balance import mean_max_over_avg
from rollout.reproduce.case import Case
from rollout.reproduce.steadiness import in_window, is_steady, until_decided
from rollout.simulation.figures import EARLY
from rollout.simulation.setup import Simulation, plan_simulation
from rollout.traces.load import load_sessions
from rollout.traces.paperlike import PAPER_SETS
from rollout.traces.scaled import scaled, with_tool_waits
from rollout.traces.session import Session

QUICK_SHARE = 64
QUICK_LEAST_AGENTS = 8
QUICK_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a case. Means over turns; None where there were none."""

    jct_s: float
    finished: int
    turns: int
    ttft_s: float | None
    ttst_s: float | None
    tpot_s: float | None
    steady: bool | None
    """Of agents that arrive: whether they were served as half an hour before. Their means are of the last
    window (rollout.reproduce.steadiness)."""
    agent_s: float | None
    """Mean duration of an agent."""
    read_bytes: float
    snic_max_over_avg: float | None
    snic_busy_max_over_avg: float | None
    """Over seconds at 40 to 90 % of what all storage NICs carry."""
    attention_max_over_avg: float | None
    attention_early: float | None
    """Over the first 5 % of the run."""
    resources: dict[str, float]
    links: dict[str, float]
    """Bytes through all links of a kind over what one second of all of them carries."""
    phases: dict[str, float]
    """Seconds of a mean turn."""
    bottleneck: str
    cpu_s: float
    """What simulating took."""


class Runner:
    """Runs cases for all rows."""

    def __init__(self, say: Callable[[str], None], *, quick: bool) -> None:
        self._say = say
        self.quick = quick
        self._done: dict[Case, Outcome] = {}
        self._last = 0

    def run(self, case: Case) -> Outcome:
        """Simulate, or recall."""
        case = self._sized(case)
        if case not in self._done:
            began_s = time.process_time()
            simulation = plan_simulation(case.config(), _sessions(case))
            watch = None if case.horizon_s is None else until_decided()
            result = simulate(simulation.spec, simulation.agents, watch)
            outcome = _outcome(case, simulation, result, time.process_time() - began_s)
            self._done[case] = outcome
            self._say(
                f"{case.step.name:15} {case.setup}: JCT {outcome.jct_s:,.0f} s, {outcome.bottleneck}; "
                f"{outcome.cpu_s:.0f} s of CPU"
            )
        return self._done[case]

    def jct_s(self, case: Case) -> float:
        return self.run(case).jct_s

    def told(self) -> list[dict[str, Any]]:
        """Every run so far, for JSON."""
        return [{**case.told(), **asdict(outcome)} for case, outcome in self._done.items()]

    def _sized(self, case: Case) -> Case:
        if not self.quick:
            return case
        return replace(
            case,
            agents=max(case.agents // QUICK_SHARE, QUICK_LEAST_AGENTS),
            window=QUICK_ROUNDS,
        )


def _sessions(case: Case) -> list[Session]:
    sessions = _loaded(case.trace)
    if case.append_scale != 1 or case.output_scale != 1:
        longest = PAPER_SETS[case.trace or ""].max_context
        sessions = scaled(sessions, case.append_scale, case.output_scale, longest)
    if case.tool_wait_s:
        sessions = with_tool_waits(sessions, case.tool_wait_s)
    return sessions


@lru_cache(maxsize=4)
def _loaded(trace: str | None) -> list[Session]:
    return load_sessions(trace)


def _outcome(case: Case, simulation: Simulation, result: SimResult, cpu_s: float) -> Outcome:
    turns, spec = result.turns, simulation.spec
    done = ~np.isnan(turns.end_s)
    told = done if case.horizon_s is None else in_window(turns, result.end_s)
    seconds, num = phase_seconds(result), max(int(done.sum()), 1)
    return Outcome(
        jct_s=result.jct_s,
        finished=result.num_finished,
        turns=int(done.sum()),
        ttft_s=_mean(turns.ttft_s[told]),
        ttst_s=_mean(turns.ttst_s[told]),
        tpot_s=_mean(turns.tpot_s[told]),
        steady=None if case.horizon_s is None else is_steady(turns, result.end_s),
        agent_s=_mean(result.agent_end_s - result.agent_start_s),
        read_bytes=result.read_bytes["prefill_side"] + result.read_bytes["decode_side"],
        snic_max_over_avg=snic_max_over_avg(result.snic),
        snic_busy_max_over_avg=mean_max_over_avg(
            result.snic.read_bytes.tolist(),
            [WINDOW_S] * len(result.snic.read_bytes),
            spec.cluster.rates.snic_bytes_per_s,
        ),
        attention_max_over_avg=attention_max_over_avg(result.forwards),
        attention_early=attention_max_over_avg(
            result.forwards, float(result.agent_start_s.min()) + EARLY * result.jct_s
        ),
        resources={use.resource: use.share for use in resource_uses(spec, result)},
        links={link.link: link.busy_s for link in result.links if math.isfinite(link.bytes_per_s)},
        phases={phase: total / num for phase, total in seconds.items()},
        bottleneck=bottleneck(spec, result),
        cpu_s=cpu_s,
    )


def _mean(column: npt.NDArray[np.floating]) -> float | None:
    known = column[~np.isnan(column)]
    return float(known.mean(dtype=np.float64)) if known.size else None
