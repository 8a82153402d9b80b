"""Where a run's numbers go: always to metrics.jsonl, and to Weights & Biases if asked.

Each `log` is one JSON object on one line of `run_dir/metrics.jsonl`, handed to the system before `log`
returns, so a run that is killed keeps its numbers. W&B gets the same series over the same axes
(`rollout/step`, `train/step`). At the start anything wrong with W&B is an error; later it is one
warning, and the job goes on without it. The only file that imports wandb.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from rollout.errors import UserError
from rollout.metrics import job_series

if TYPE_CHECKING:
    import wandb

    from rollout.config import MonitorConfig
    from rollout.run_dir import RunDir
    from rollout.summary import JobSummary

logger = logging.getLogger(__name__)

AXIS_OF_GROUP = {
    "rollout": "rollout/step",
    "kv": "rollout/step",
    "timing_s": "rollout/step",
    "train": "train/step",
}
"""The step axis of each group of series; a group that is not here has none."""
START_DEADLINE_S = 30.0
FINISH_DEADLINE_S = 30.0
"""Longest an online run may take to send the rest; what is left stays in run_dir for `wandb sync`."""


class MonitorError(UserError):
    """W&B cannot start, or metrics.jsonl cannot be written; its earlier lines are whole."""


class Monitor:
    """One run's numbers. Use `Monitor.open`, in a `with`."""

    def __init__(self, metrics: TextIO, run: WandbRun | None) -> None:
        self._metrics = metrics
        self._run = run

    @classmethod
    def open(cls, run_dir: RunDir, config: MonitorConfig, run_config: Mapping[str, object]) -> Monitor:
        """Start; `run_config` is told to W&B. Lines that metrics.jsonl has already are kept."""
        with _metrics_errors(run_dir.metrics):
            metrics = run_dir.metrics.open("a", encoding="utf-8")
        try:
            run = None if config.wandb == "off" else WandbRun(run_dir.path, config, run_config)
        except BaseException:
            metrics.close()
            raise
        return cls(metrics, run)

    def log(self, series: Mapping[str, float], *, step: int) -> None:
        """Record one point of each series; the axes of their groups are added."""
        groups = {name.partition("/")[0] for name in series}
        axes = {AXIS_OF_GROUP[group]: step for group in groups if group in AXIS_OF_GROUP}
        row = {**axes, **series}
        self._write_line(row)
        if self._run is not None:
            self._run.log(row)

    def finish(self, summary: JobSummary) -> None:
        """Record the job's figures, as `job/...`: the last line, and W&B's summary."""
        row = job_series(summary)
        self._write_line(row)
        if self._run is not None:
            self._run.set_summary(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)
        self._metrics.close()

    def _write_line(self, row: Mapping[str, float]) -> None:
        numbers = {name: _json_number(value) for name, value in row.items()}
        with _metrics_errors(Path(self._metrics.name)):
            self._metrics.write(json.dumps(numbers, allow_nan=False) + "\n")
            self._metrics.flush()


class WandbRun:
    """A W&B run that, once started, cannot hurt the job."""

    def __init__(self, folder: Path, config: MonitorConfig, run_config: Mapping[str, object]) -> None:
        self._run: wandb.Run | None = _start_wandb(folder, config, run_config)

    def log(self, row: Mapping[str, float]) -> None:
        self._attempt(lambda run: run.log(dict(row)))

    def set_summary(self, row: Mapping[str, float]) -> None:
        self._attempt(lambda run: run.summary.update(dict(row)))

    def finish(self, exit_code: int) -> None:
        self._attempt(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _attempt(self, act: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as error:  # noqa: BLE001  whatever W&B raises must not end the job
            self._run = None
            _stop_wandb()
            logger.warning(
                "W&B failed and gets no more of this run (%s); metrics.jsonl has everything",
                _first_line(error),
            )


def _start_wandb(folder: Path, config: MonitorConfig, run_config: Mapping[str, object]) -> wandb.Run:
    try:
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            init_timeout=START_DEADLINE_S,
            login_timeout=START_DEADLINE_S,
            finish_timeout=FINISH_DEADLINE_S,
        )
        run = wandb.init(
            project=config.project,
            name=config.name or folder.name,
            dir=str(folder),
            mode="online" if config.wandb == "online" else "offline",
            config=dict(run_config),
            reinit="create_new",
            settings=settings,
        )
        for group, axis in AXIS_OF_GROUP.items():
            run.define_metric(f"{group}/*", step_metric=axis)
    except Exception as error:  # whatever W&B raises, the user gets one line
        raise MonitorError(
            f"W&B does not start ({_first_line(error)}); "
            "pass monitor=wandb_offline, which needs no account, or monitor=off"
        ) from error
    return run


def _stop_wandb() -> None:
    """Take W&B's service down, so that it neither fails again at exit nor in this process's next run."""
    import wandb

    with suppress(Exception):  # it may be what failed
        wandb.teardown()


def _json_number(value: float) -> float | None:
    """Null for NaN and infinities, which JSON does not have."""
    if not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


@contextmanager
def _metrics_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MonitorError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another run_dir"
        ) from error
