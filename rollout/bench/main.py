"""Runs the studies and writes the JSON after each, so that nothing measured is lost whatever happens next."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from kvstore.tools.bench.figures import Findings
from kvstore.tools.output import make_console
from rollout import __version__
from rollout.bench.bench import Bench
from rollout.bench.one_replay import CPU_LIMIT, Runner
from rollout.bench.report import bench_report
from rollout.bench.studies import ON_REQUEST, STUDIES

RUN_DEADLINE_S = 180.0
CANNOT_SHOW = (
    "GPU time is modelled and NICs are limiters in memory; bytes, store, transports and scheduling are real. "
    "Ratios of JCTs are meant to carry over, seconds are not"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when it measured, 1 when no study gave a figure, 2 for bad input, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    say = make_console(stderr=True).print
    unknown = [name for name in options.only or () if name not in STUDIES]
    if unknown:
        print(f"error: --only {unknown[0]} is no study; known: {', '.join(STUDIES)}", file=sys.stderr)  # noqa: T201
        return 2
    findings = Findings()
    started_s = time.monotonic()
    code = 0
    with (
        _own_folder(options.folder) as folder,
        Runner(folder, RUN_DEADLINE_S, lambda text: say(text, highlight=False)) as runner,
    ):
        bench = Bench(
            runner=runner,
            findings=findings,
            folder=folder,
            say=lambda text: say(text, highlight=False),
            quick=options.quick,
            num_rounds=1 if options.quick else options.rounds,
            reported_rounds=1 if options.quick else options.reported_rounds,
            trace=options.trace,
        )
        conditions = _conditions(bench)
        try:
            for name in options.only or [name for name in STUDIES if name not in ON_REQUEST]:
                _study(name, bench)
                conditions["seconds"] = round(time.monotonic() - started_s)
                _write(options.json, findings, conditions, quick=options.quick)
        except KeyboardInterrupt:
            findings.left_out["the rest"] = "interrupted"
            _write(options.json, findings, conditions, quick=options.quick)
            code = 130
    console = make_console()
    for part in bench_report(findings, conditions, quick=options.quick):
        console.print(part)
    return code or int(not findings.figures)


def _study(name: str, bench: Bench) -> None:
    """A study that cannot go on leaves a reason and its runs so far; the others go on."""
    try:
        STUDIES[name](bench)
    except Exception as error:  # noqa: BLE001  (one study's trouble must not cost the others' figures)
        bench.say(traceback.format_exc())
        bench.findings.left_out[name] = f"{type(error).__name__}: {error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench_paths", description="Measures the data paths.")
    parser.add_argument("--json", type=Path, help="write the figures here, after every study")
    parser.add_argument("--quick", action="store_true", help="the same, small; nothing is judged")
    parser.add_argument("--only", action="append", metavar="STUDY", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each step")
    parser.add_argument("--reported-rounds", type=int, default=1, help="of studies that have no goal")
    parser.add_argument("--trace", help="recorded agents to replay beside the equal ones")
    parser.add_argument("--folder", type=Path, help="where the stores of the runs lie; they are removed")
    return parser


@contextmanager
def _own_folder(where: Path | None) -> Iterator[Path]:
    """A new folder that goes again, on SIGTERM too."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="bench-paths-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _conditions(bench: Bench) -> dict[str, Any]:
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "version": __version__,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
        "rounds": bench.num_rounds,
        "reported_rounds": bench.reported_rounds,
        "cpu_limit": CPU_LIMIT,
        "quick": bench.quick,
        "trace": bench.trace or "sample",
        "cannot_show": CANNOT_SHOW,
    }


def _write(path: Path | None, findings: Findings, conditions: dict[str, Any], *, quick: bool) -> None:
    if path is None:
        return
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(findings.answer(conditions, quick=quick), indent=1))
    new.replace(path)
