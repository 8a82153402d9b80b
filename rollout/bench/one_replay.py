"""One replay in a driver process, with a deadline, and what its summary says.

A run that took more than 80 % of the cores measured the machine, not the paths: it is not valid. Whatever
way a run ends, no process of it is left: each carries a mark in its environment by which it is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.bench.ladder import Step
from rollout.records import read_trajectories

CPU_LIMIT = 0.8
_MARK = "ROLLOUT_BENCH_RUN"
_END_S = 20.0
"""A run that is told to stop has so long to stop its processes."""
_TOLD_CHARACTERS = 400
_LINE = ("job=replay", "monitor=off")


class RunFailed(Exception):
    """A run that gave no figures; one line says why."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one run measured."""

    step: str
    time_scale: float
    summary: dict[str, Any]
    wall_s: float
    """With start and end."""
    tokens_digest: str
    """Of every trajectory's token ids."""
    cpu_limit: float

    @property
    def jct_s(self) -> float:
        return float(self.summary["jct_s"])

    @property
    def full_s(self) -> float:
        """The JCT with modelled times undivided, so that runs of different time scales compare."""
        return self.jct_s * self.time_scale

    @property
    def replay(self) -> dict[str, Any]:
        return dict(self.summary["replay"])

    @property
    def cpu_use(self) -> float:
        return float(self.replay["cpu_use"])

    @property
    def valid(self) -> bool:
        """Had the machine CPU to spare, and were all trajectories completed?"""
        completed = self.summary["outcomes"]["completed"] == self.summary["num_trajectories"]
        return self.cpu_use <= self.cpu_limit and bool(completed)

    @property
    def read_bytes(self) -> int:
        """Through all storage NICs."""
        read = self.summary["kv"]["read_bytes"]
        return int(read["prefill_side"]) + int(read["decode_side"])

    def told(self) -> dict[str, Any]:
        """What is kept of it in the series."""
        kept = ("jct_s", "num_turns", "tokens", "hit_rate", "ttft_s", "ttst_s", "tpot_s", "outcomes", "kv")
        replay = self.replay
        figures = (
            "setting",
            "scale",
            "agents",
            "rates",
            "oracle_s_estimated",
            "cpu_use",
            "snic",
            "attention",
            "decode",
        )
        step = self.summary["steps"][0]
        return {
            "step": self.step,
            "time_scale": self.time_scale,
            "valid": self.valid,
            "wall_s": round(self.wall_s, 1),
            **{name: self.summary[name] for name in kept},
            "trajectory_breakdown_mean": self.summary["trajectory_breakdown_mean"],
            "tail_frac": step["tail_frac"],
            **{name: replay[name] for name in figures if name in replay},
        }


class Runner:
    """Runs replays one after the other, each in a folder of `folder`, and says how each went.

    They share a driver process (rollout.bench.driver), which is made anew after a run that did not end.
    """

    def __init__(self, folder: Path, deadline_s: float, say: Callable[[str], None]) -> None:
        """`deadline_s`: of one run, its start and end included."""
        self._folder = folder
        self._deadline_s = deadline_s
        self._say = say
        self._driver: _Driver | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *raised: object) -> None:
        self._leave_driver()

    def run(
        self, step: Step, overrides: Sequence[str], time_scale: float, cpu_limit: float = CPU_LIMIT
    ) -> Replayed:
        """Raises RunFailed if the run fails or passes its deadline."""
        folder = self._folder / f"run-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        line = [
            *_LINE,
            *overrides,
            *step.overrides,
            f"time_scale={time_scale:g}",
            f"run_dir={folder / 'run'}",
        ]
        started_s = time.monotonic()
        try:
            self._run(line, folder / "log")
            summary = json.loads((folder / "run" / "summary.json").read_text())
            digest = _tokens_digest(folder / "run" / "trajectories.parquet")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        done = Replayed(step.name, time_scale, summary, time.monotonic() - started_s, digest, cpu_limit)
        verdict = "" if done.valid else "  INVALID"
        self._say(
            f"  {step.name}: JCT {done.jct_s:.2f} s at time_scale {time_scale:g}, CPU {done.cpu_use:.0%}, "
            f"run {done.wall_s:.0f} s{verdict}"
        )
        return done

    def _run(self, line: Sequence[str], log: Path) -> None:
        if self._driver is None:
            self._driver = _Driver()
        ended = False
        try:
            code = self._driver.play(line, log, self._deadline_s)
            ended = code is not None
        finally:
            if not ended:  # late, gone, or this process is interrupted: what it started ends with it
                self._leave_driver()
        told = log.read_text().strip().splitlines() if log.exists() else []
        if code is None:
            raise RunFailed(f"was not done after {self._deadline_s:.0f} s; stopped. {_last(told)}")
        if code != 0:
            raise RunFailed(f"ended with code {code}: {_last(told)}")

    def _leave_driver(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()


class _Driver:
    """The process, and the mark by which whatever it started is found."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rollout.bench.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {_MARK: self._mark},
            start_new_session=True,  # an interrupt of this script reaches it through us alone
        )

    def play(self, arguments: Sequence[str], log: Path, deadline_s: float) -> int | None:
        """The job's exit code; None if it gave none in time. Raises RunFailed if the driver ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):  # it has ended, as what it answers will tell
            stdin.write(json.dumps({"arguments": list(arguments), "log": str(log)}).encode() + b"\n")
            stdin.flush()
        if not select.select([stdout], [], [], deadline_s)[0]:
            return None
        answer = stdout.readline()
        if not answer:
            raise RunFailed("the process that plays the runs ended")
        return int(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # nothing more to play
        _stop(self._process)
        end_marked(self._mark)


def _tokens_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for trajectory in sorted(read_trajectories(path), key=lambda each: each.trajectory_id):
        for segment in trajectory.segments:
            digest.update(segment.token_ids.tobytes())
    return digest.hexdigest()


def _last(lines: Sequence[str]) -> str:
    return (lines[-1] if lines else "it said nothing")[-_TOLD_CHARACTERS:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end as Ctrl-C would, then end it."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_marked(mark: str) -> int:
    """End every process that was started with this mark; how many there were."""
    found = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it has ended since, or belongs to somebody else
            continue
        if f"{_MARK}={mark}".encode() in environment.split(b"\0"):
            with suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)
                found += 1
    return found
