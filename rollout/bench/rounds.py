"""Runs the steps of a study in turn, A B C A B C, so that a slow spell of the machine meets all of them.

Steps are compared at one pace. If a run of the first round is invalid, modelled time and NICs are slowed
down for all steps and the round begins again; what ran before is kept for the record. An invalid run of a
later round is done once more as it was; what is invalid then too is never judged. A run that fails is told
and left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollout.bench.ladder import Step
from rollout.bench.one_replay import CPU_LIMIT, Replayed, RunFailed

SLOWER = 1.5
"""A pace that is too fast is divided by this."""
MOST_SLOWINGS = 2


class RunsReplays(Protocol):
    """A Runner, or what stands for it."""

    def run(self, step: Step, overrides: Sequence[str], time_scale: float, cpu_limit: float) -> Replayed:
        """Raises RunFailed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: a workload served by several steps."""

    steps: tuple[Step, ...]
    overrides: tuple[str, ...]
    """Of every step."""
    time_scale: float
    cpu_limit: float = CPU_LIMIT


@dataclass(slots=True)
class Runs:
    """All runs of a plan, by step."""

    by_step: dict[str, list[Replayed]]
    time_scale: float
    """Of the runs that are compared: the plan's, or slower."""
    failed: list[str] = field(default_factory=list)

    def of(self, step: Step) -> list[Replayed]:
        """The valid runs if there is one, else all: a figure from them is told and not judged."""
        runs = [run for run in self.by_step[step.name] if run.time_scale == self.time_scale]
        return [run for run in runs if run.valid] or runs

    def has(self, *steps: Step) -> bool:
        """Whether each of the steps has a run."""
        return all(self.of(step) for step in steps)

    def judged(self, *steps: Step) -> bool:
        """Whether each of the steps has a valid run."""
        return all(any(run.valid for run in self.of(step)) for step in steps)

    def median(self, step: Step, value: Callable[[Replayed], float]) -> float:
        """Raises StatisticsError if the step has no run at all."""
        return statistics.median(value(run) for run in self.of(step))

    def full_s(self, step: Step) -> float:
        """Median JCT, in seconds of full size."""
        return self.median(step, lambda run: run.full_s)


def alternate(runner: RunsReplays, plan: Plan, num_rounds: int, say: Callable[[str], None]) -> Runs:
    """`num_rounds` runs of each step, the steps taking turns."""
    runs = Runs({step.name: [] for step in plan.steps}, plan.time_scale)
    say(f" round 1/{num_rounds}")
    for _ in range(MOST_SLOWINGS):
        if _first_round(runner, plan, runs, say):
            break
        runs.time_scale /= SLOWER
        say(f" too fast for this machine: once more at time_scale {runs.time_scale:g}")
    else:
        _round(runner, plan, runs, say)
    for number in range(1, num_rounds):
        say(f" round {number + 1}/{num_rounds}")
        _round(runner, plan, runs, say)
    return runs


def _first_round(runner: RunsReplays, plan: Plan, runs: Runs, say: Callable[[str], None]) -> bool:
    """Whether all of it was valid; it ends with the first run that was not."""
    return all(_valid(_run(runner, plan, step, runs, say)) for step in plan.steps)


def _round(runner: RunsReplays, plan: Plan, runs: Runs, say: Callable[[str], None]) -> None:
    for step in plan.steps:
        if not _valid(_run(runner, plan, step, runs, say)):
            _run(runner, plan, step, runs, say)


def _valid(run: Replayed | None) -> bool:
    """A run that failed is not done again."""
    return run is None or run.valid


def _run(
    runner: RunsReplays, plan: Plan, step: Step, runs: Runs, say: Callable[[str], None]
) -> Replayed | None:
    """None if it failed."""
    try:
        run = runner.run(step, plan.overrides, runs.time_scale, plan.cpu_limit)
    except RunFailed as error:
        say(f"  {step.name}: FAILED: {error}")
        runs.failed.append(f"{step.name}: {error}")
        return None
    runs.by_step[step.name].append(run)
    return run
