"""Runs the steps of a study in turn, A B C A B C, so that a slow spell of the machine meets all of them.

An invalid run is done once more with modelled time and NICs slowed down; if it is invalid then too, it is
kept for the record and never judged. A run that fails is told and left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rollout.bench.ladder import Step
from rollout.bench.one_replay import CPU_LIMIT, Replayed, RunFailed

SLOWER = 1.5
"""An invalid run is repeated with its time scale divided by this."""


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
    failed: list[str] = field(default_factory=list)

    def of(self, step: Step) -> list[Replayed]:
        """The valid runs if there is one, else all: a figure from them is told and not judged."""
        runs = self.by_step[step.name]
        return [run for run in runs if run.valid] or runs

    def has(self, *steps: Step) -> bool:
        """Whether each of the steps has a run."""
        return all(self.by_step[step.name] for step in steps)

    def judged(self, *steps: Step) -> bool:
        """Whether each of the steps has a valid run."""
        return all(any(run.valid for run in self.by_step[step.name]) for step in steps)

    def median(self, step: Step, value: Callable[[Replayed], float]) -> float:
        """Raises StatisticsError if the step has no run at all."""
        return statistics.median(value(run) for run in self.of(step))

    def full_s(self, step: Step) -> float:
        """Median JCT, in seconds of full size."""
        return self.median(step, lambda run: run.full_s)


def alternate(runner: RunsReplays, plan: Plan, num_rounds: int, say: Callable[[str], None]) -> Runs:
    """`num_rounds` runs of each step, the steps taking turns."""
    runs = Runs({step.name: [] for step in plan.steps})
    slowed: dict[str, float] = {}
    for number in range(num_rounds):
        say(f" round {number + 1}/{num_rounds}")
        for step in plan.steps:
            try:
                _run(runner, plan, step, runs.by_step[step.name], slowed)
            except RunFailed as error:
                say(f"  {step.name}: FAILED: {error}")
                runs.failed.append(f"{step.name}: {error}")
    return runs


def _run(runner: RunsReplays, plan: Plan, step: Step, done: list[Replayed], slowed: dict[str, float]) -> None:
    """One run, and another if it is invalid; what was too fast once is slow from the beginning then."""
    time_scale = slowed.get(step.name, plan.time_scale)
    done.append(runner.run(step, plan.overrides, time_scale, plan.cpu_limit))
    if not done[-1].valid and step.name not in slowed:
        slowed[step.name] = time_scale / SLOWER
        done.append(runner.run(step, plan.overrides, slowed[step.name], plan.cpu_limit))
