"""A bar on the terminal while a store is read; nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from kvstore.files import Files
from kvstore.tools.output import make_console


@contextmanager
def bytes_read(directory: Path, files: Files) -> Iterator[Callable[[int], None]]:
    """Gives what takes the bytes of each piece that was read. Raises OSError."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda nbytes: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=_segment_bytes(directory, files))
        yield lambda nbytes: progress.advance(task, nbytes)


def _segment_bytes(directory: Path, files: Files) -> int:
    total = 0
    for name in files.list(directory):
        try:
            total += files.size(directory / name) if name.endswith(".kv") else 0
        except FileNotFoundError:  # evicted meanwhile
            continue
    return total
