"""`bench`: everything in order, in a folder of its own that is gone afterwards, whatever happens."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kvstore.direct_io import probe_direct
from kvstore.files import PosixFiles
from kvstore.tools.bench.block_io import measure_block_io
from kvstore.tools.bench.figures import Findings
from kvstore.tools.bench.memory import measure_memory
from kvstore.tools.bench.offload import measure_offload
from kvstore.tools.bench.opening import measure_opening
from kvstore.tools.bench.sizes import BenchSizes
from kvstore.tools.errors import WrongInput
from kvstore.tools.output import DASH, make_console, make_table, size

CANNOT_SHOW = (
    "where a host caches the disk, these are speeds of its memory: the ratios tell what the store costs, "
    "not how fast an SSD is; the page cache of this machine is not dropped before a store is opened"
)


def run_bench(directory: Path, sizes: BenchSizes) -> tuple[Findings, dict[str, Any]]:
    """What was measured and under which conditions. `directory` is made where it is missing.

    Raises WrongInput where too little space is free, StoreError where blocks do not come back.
    """
    findings = Findings()
    say = make_console(stderr=True).print
    with _own_folder(directory, sizes) as folder:
        conditions = _conditions(folder, sizes)
        measure_block_io(folder, sizes, findings, say)
        say("memory")
        measure_memory(sizes, findings)
        say("SSD offload")
        measure_offload(folder, sizes, findings)
        say(f"opening a store of {sizes.index_blocks:,} blocks")
        measure_opening(folder, sizes, findings)
    return findings, conditions


def bench_report(findings: Findings, conditions: Mapping[str, Any], *, quick: bool) -> list[RenderableType]:
    """For people."""
    table = make_table("figure", "measured", "unit", "goal", "reached", left=(0, 2, 4))
    for figure in findings.figures:
        reached = None if quick else figure.reached()
        verdict = Text({True: "yes", False: "no", None: DASH}[reached], "red" if reached is False else "")
        table.add_row(figure.name, f"{figure.value:g}", figure.unit, figure.goal(), verdict)
    left_out = [Text(f"left out: {name}: {reason}") for name, reason in findings.left_out.items()]
    told = Text(", ".join(f"{name} {value}" for name, value in conditions.items()), style="dim")
    return [table, *left_out, Text(), told]


@contextmanager
def _own_folder(directory: Path, sizes: BenchSizes) -> Iterator[Path]:
    """A new folder in `directory`; it and whatever was made for it go again, on SIGTERM too."""
    made = not directory.exists()
    if not made and not directory.is_dir():
        raise WrongInput(f"PATH {directory} is a file; name a directory on the disk to measure")
    try:
        directory.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    except OSError as error:
        raise WrongInput(f"PATH {directory} cannot be measured: {error.strerror}") from error
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        free, needed = shutil.disk_usage(folder).free, sizes.disk_bytes()
        if free < needed:
            raise WrongInput(
                f"{directory} has {size(free)} free and the benchmark needs {size(needed)}; "
                "free some, use --quick or another PATH"
            )
        yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)
        if made:
            with suppress(OSError):  # somebody else uses it by now
                directory.rmdir()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _conditions(folder: Path, sizes: BenchSizes) -> dict[str, Any]:
    return {
        "machine": platform.processor() or platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "file_system": _file_system(folder),
        "o_direct": probe_direct(files=PosixFiles(), directory=folder),
        "disk_bytes": sizes.disk_bytes(),
        "io_threads": sizes.io_threads,
        "rounds": sizes.rounds,
        "bytes_per_round": sizes.bytes_per_round,
        "index_blocks": sizes.index_blocks,
        "cannot_show": CANNOT_SHOW,
    }


def _file_system(folder: Path) -> str:
    """Type of the file system that `folder` lies on, as mounted last."""
    best, found = -1, "unknown"
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return found
    for line in mounts:
        _, mounted_on, kind, *_ = line.split()
        point = Path(mounted_on.encode().decode("unicode_escape"))
        if folder.resolve().is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), kind
    return found
