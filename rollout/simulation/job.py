"""Runs job=simulate and job=plan, and leaves what every job leaves: summary.json, metrics, a table.

There is no trajectories.parquet, as no token was made; the summary says `simulated`.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict

from engines.sim.simulate import simulate
from rollout import __version__
from rollout.compose import to_yaml
from rollout.config import RunConfig
from rollout.metrics import series, summarise_job
from rollout.monitor import Monitor
from rollout.progress import Progress
from rollout.replay import slo_figures
from rollout.report import print_report
from rollout.run_dir import RunDir
from rollout.simulation.figures import simulation_figures, summarise_simulation
from rollout.simulation.plan import Split, plan_splits
from rollout.simulation.plan_report import print_plan
from rollout.simulation.setup import plan_simulation

_VERSIONS = {"dualpath-rollout": __version__, "python": platform.python_version()}


def run_simulation(config: RunConfig, overrides: Sequence[str]) -> int:
    """Simulate once; returns the exit code. Raises UserError with one line before anything is written.

    `overrides` are what `config` was composed with.
    """
    simulation = plan_simulation(config)
    with ExitStack() as stack:
        run_dir = _open(stack, config, overrides)
        progress = stack.enter_context(Progress.open(sys.stderr))
        monitor = stack.enter_context(Monitor.open(run_dir, config.monitor, asdict(config)))
        progress.phase(simulation.told())
        began_s = time.monotonic()
        result = simulate(simulation.spec, simulation.agents)
        step = summarise_simulation(simulation.agents, result)
        replay = simulation.figures()
        replay["slo"] = slo_figures(step.figures(), 1.0)
        summary = summarise_job(
            [step],
            job=config.job,
            seed=config.seed,
            timing_s={"simulate": time.monotonic() - began_s},
            versions=_VERSIONS,
            replay=replay,
        )
        summary["simulated"], summary["transport"] = True, "simulated"
        summary["simulation"] = simulation_figures(simulation.spec, result)
        monitor.log(series(step), step=0)
        run_dir.write_summary(summary)
        monitor.finish(summary)
    print_report(summary, run_dir)
    return 0


def run_plan(config: RunConfig, overrides: Sequence[str]) -> int:
    """Simulate divisions of the nodes; returns the exit code."""
    with ExitStack() as stack:
        progress = stack.enter_context(Progress.open(sys.stderr))
        splits = plan_splits(config, progress.phase)
        run_dir = _open(stack, config, overrides)
        run_dir.write_summary(_plan_summary(config, splits))
    print_plan(splits[: config.budget.best], len(splits))
    return 0


def _open(stack: ExitStack, config: RunConfig, overrides: Sequence[str]) -> RunDir:
    run_dir = stack.enter_context(RunDir.open(config.run_dir, overwrite=config.overwrite))
    run_dir.write_config(to_yaml(config), overrides)
    return run_dir


def _plan_summary(config: RunConfig, splits: list[Split]) -> Mapping[str, object]:
    return {
        "job": config.job,
        "simulated": True,
        "seed": config.seed,
        "splits": [split.figures() for split in splits],
        "versions": _VERSIONS,
    }
