"""The place of the store: can it be written, how much fits, past the page cache or not, and how fast."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvstore.config import StoreConfig
from kvstore.direct_io import aligned_buffer, probe_direct
from kvstore.files import PosixFiles
from kvstore.probes.finding import Finding, Verdict
from kvstore.shared_mount import mount_type
from kvstore.tools.bench.raw_file import RawFile

_PIECE_BYTES = 1 << 20
_NUM_PIECES = 16
_SECONDS = 0.4
_SLOW_BYTES_PER_S = 500e6
"""A SATA SSD. Below it, loading 64 KiB of KV a token takes longer than most GPUs take to compute it."""


def probe_store_place(config: StoreConfig, directory: Path) -> Sequence[Finding]:
    """Kind of file system, room, and O_DIRECT."""
    if config.kind == "mooncake":
        return [Finding("store", Verdict.OK, "kvstore=mooncake keeps no files of its own")]
    with _own_folder(directory) as folder:
        return [_room(config, directory, folder), _direct(folder)]


def probe_disk_rate(config: StoreConfig, directory: Path) -> Sequence[Finding]:
    """Bytes per second with as many threads as a node reads with; caches beneath the file system count in."""
    if config.kind == "mooncake":
        return []
    with _own_folder(directory) as folder:
        direct = probe_direct(PosixFiles(), folder)
        read, write = _rates(folder, config.io_threads, direct=direct)
    how = "past the page cache" if direct else "through the page cache"
    told = (
        f"writes {write / 1e9:.2f} GB/s, reads {read / 1e9:.2f} GB/s {how}, {config.io_threads} threads "
        "(a short look; a cache of the disk's or the host's counts in)"
    )
    figures = {"write_bytes_per_s": write, "read_bytes_per_s": read}
    if read < _SLOW_BYTES_PER_S:
        advice = (
            "name a faster disk by kvstore.path: computing KV again may be faster than loading it from here"
        )
        return [Finding("disk", Verdict.WARN, told, advice, figures)]
    return [Finding("disk", Verdict.OK, told, figures=figures)]


def _room(config: StoreConfig, directory: Path, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    kind = mount_type(folder) or "an unknown file system"
    told = f"{directory} on {kind}, {free / 1e9:.1f} GB free"
    figures = {"free_bytes": float(free)}
    if free < 2 * config.segment_bytes:
        advice = (
            f"free some, or name another place by kvstore.path: a segment has {config.segment_bytes} bytes"
        )
        return Finding("store", Verdict.FAIL, told, advice, figures)
    if config.capacity_bytes is not None and config.capacity_bytes > free:
        advice = (
            f"kvstore.capacity_bytes={config.capacity_bytes} counts what the store holds already; "
            "if that is less than what is missing here, lower it"
        )
        return Finding("store", Verdict.WARN, told, advice, figures)
    if kind == "tmpfs":
        advice = "blocks there take this host's memory; name a disk by kvstore.path for more than a trial"
        return Finding("store", Verdict.WARN, told, advice, figures)
    return Finding("store", Verdict.OK, told, figures=figures)


def _direct(folder: Path) -> Finding:
    if probe_direct(PosixFiles(), folder):
        return Finding("O_DIRECT", Verdict.OK, "a page written past the page cache came back")
    advice = (
        "fine on tmpfs; elsewhere reads cost memory and a copy: name a place on ext4 or XFS by kvstore.path"
    )
    return Finding("O_DIRECT", Verdict.WARN, "not there: the store uses the page cache", advice)


def _rates(folder: Path, num_threads: int, *, direct: bool) -> tuple[float, float]:
    """Of reading and of writing the same file, each for as many rounds as fit into the time."""
    memory = aligned_buffer(_NUM_PIECES * _PIECE_BYTES)
    memory[:] = 1
    pieces = list(memory.reshape(_NUM_PIECES, _PIECE_BYTES))
    places = [i * _PIECE_BYTES for i in range(_NUM_PIECES)]
    with RawFile(folder / "rate", num_threads=num_threads, direct=direct) as file:
        written = [_seconds(lambda: file.write(pieces, 1, preallocate=False)) for _ in _for(_SECONDS)]
        read = [_seconds(lambda: file.read(places, pieces)) for _ in _for(_SECONDS)]
    return memory.nbytes / min(read), memory.nbytes / min(written)


def _for(seconds: float) -> Iterator[None]:
    """At least once."""
    end_s = time.perf_counter() + seconds
    yield
    while time.perf_counter() < end_s:
        yield


def _seconds(move: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    move()
    return time.perf_counter() - started_s


@contextmanager
def _own_folder(directory: Path) -> Iterator[Path]:
    """A folder in `directory`, or in the nearest one above it that is there; it goes again.

    Raises OSError where none can be made.
    """
    there = next(each for each in (directory, *directory.parents) if each.is_dir())
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as folder:
        yield Path(folder)
