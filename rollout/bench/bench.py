"""What every study has at hand: the runner, the findings, and how to tell a figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstore.tools.bench.figures import Better, Figure, Findings
from rollout.bench.ladder import Step
from rollout.bench.rounds import Plan, Runs, RunsReplays, alternate
from rollout.bench.workload import EqualAgents


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach."""

    target: float | None
    better: Better = "higher"


NO_GOAL = Goal(None)
QUIET = ("kvstore.read_report_s=0.1", "scheduler.fetch_period_s=0.01", "ray.agent_workers=1")
"""Of every paced run: fewer messages a second. Modelled time runs as fast as the host's CPU allows, and these
periods are real time."""


@dataclass(slots=True)
class Bench:
    """One call of the script."""

    runner: RunsReplays
    findings: Findings
    folder: Path
    """For traces."""
    say: Callable[[str], None]
    quick: bool
    num_rounds: int
    reported_rounds: int
    """Of studies without a goal."""
    trace: str | None
    """The user's recorded agents; None: the bundled sample."""

    def equal_agents(
        self, steps: Sequence[Step], agents: EqualAgents, *overrides: str, scale: float, time_scale: float
    ) -> Plan:
        """A plan of equal agents."""
        path = self.folder / f"{agents.name}.csv"
        agents.write(path)
        return Plan(
            tuple(steps), (*agents.overrides(path), *QUIET, f"scale={scale:g}", *overrides), time_scale
        )

    def replay(self, name: str, plan: Plan, num_rounds: int | None = None) -> Runs:
        """Run the plan; every run goes into the series `name`."""
        self.say(f"{name}: {', '.join(step.name for step in plan.steps)}")
        runs = alternate(self.runner, plan, num_rounds or self.num_rounds, self.say)
        self.findings.series[name] = {
            "runs": {step: [run.told() for run in done] for step, done in runs.by_step.items()},
            "failed": runs.failed,
            "time_scale": runs.time_scale,
        }
        return runs

    def tell(
        self, name: str, value: Callable[[], float], unit: str, goal: Goal, runs: Runs, *steps: Step
    ) -> None:
        """From the runs of `steps`: left out where a step has none, not judged where none is valid."""
        missing = [step.name for step in steps if not runs.has(step)]
        if missing:
            self.findings.left_out[name] = f"no run of {', '.join(missing)}"
            return
        try:
            measured = value()
        except (ZeroDivisionError, statistics.StatisticsError, TypeError) as error:
            self.findings.left_out[name] = f"not measured: {error}"
            return
        if not runs.judged(*steps):
            self.findings.left_out[f"{name}: its verdict"] = "no run of a step was valid: CPU above 80 %"
            goal = NO_GOAL
        self.findings.figures.append(Figure(name, round(measured, 4), unit, goal.target, goal.better))

    def tell_ratio(self, name: str, over: Step, under: Step, runs: Runs, goal: Goal = NO_GOAL) -> None:
        """JCT of `over` to JCT of `under`."""
        self.tell(
            name, lambda: runs.full_s(over) / runs.full_s(under), "ratio of JCTs", goal, runs, over, under
        )
