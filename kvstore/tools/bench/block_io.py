"""The SSD store against the bare disk: the same bytes, sizes and number of threads, in turns.

    reads     batched, every block verified, random order, against unverified preadv of the same sizes
    writes    batched, durability none, against pwritev of the same bytes, in calls as large as the store's

The store reads neighbours of a call together, so random reads come as two calls, each of every other
block in random order, and none of a call's blocks are neighbours. The sequential figure has no goal. The
baseline of a write is the faster of an empty and a preallocated file.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstore.checksum import layer_checksums
from kvstore.direct_io import probe_direct
from kvstore.files import PosixFiles
from kvstore.io_runs import MAX_APPEND_BYTES
from kvstore.layout import BlockLayout
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockWrite
from kvstore.tools.bench.blocks import DEADLINE_S, Blocks, check_read, write_all
from kvstore.tools.bench.figures import Findings, speed_over
from kvstore.tools.bench.raw_file import RawFile
from kvstore.tools.bench.rounds import alternate
from kvstore.tools.bench.sizes import BenchSizes, layout_of

GOAL_LARGE_READ = 0.90
GOAL_SMALL_READ = 0.80
GOAL_WRITE = 0.80


def measure_block_io(
    folder: Path, sizes: BenchSizes, findings: Findings, tell: Callable[[str], None]
) -> None:
    """Add the figures of reads and writes. `folder` is empty and is left empty."""
    cases = {}
    for block_bytes in (sizes.small_block_bytes, *sizes.large_block_bytes):
        for num_layers in sizes.num_layers:
            name = f"{block_bytes >> 10} KiB, {num_layers} layers"
            tell(f"blocks of {name}")
            cases[name] = _Case(folder, layout_of(block_bytes, num_layers), sizes).measure()
    findings.series["block_io"] = {name: case["raw_numbers"] for name, case in cases.items()}
    small_name = f"{sizes.small_block_bytes >> 10} KiB"
    small = {name: case for name, case in cases.items() if name.startswith(small_name)}
    large = {name: case for name, case in cases.items() if name not in small}
    for figure, kind, among, target in (
        ("reads_1_to_4_mib_over_raw", "random", large, GOAL_LARGE_READ),
        ("reads_256_kib_over_raw", "random", small, GOAL_SMALL_READ),
        ("sequential_reads_over_raw", "sequential", cases, None),
        ("writes_over_raw", "write", cases, GOAL_WRITE),
        ("writes_computing_checksums_over_raw", "write_computing", cases, None),
    ):
        findings.add_ratio(figure, target, {name: case["ratios"][kind] for name, case in among.items()})


class _Case:
    """One block size and number of layers."""

    def __init__(self, folder: Path, layout: BlockLayout, sizes: BenchSizes) -> None:
        self._folder = folder
        self._directory = folder / "store"
        self._layout = layout
        self._sizes = sizes
        self._blocks = Blocks(layout, sizes.bytes_per_round)

    def measure(self) -> dict[str, Any]:
        """Ratios by kind, and the seconds behind them."""
        writes, reads = self._writes(), self._reads()
        raw_write = min(writes["raw"], writes["raw_preallocated"], key=statistics.median)
        ratios = {
            "write": speed_over(writes["ours"], raw_write),
            "write_computing": speed_over(writes["ours_computing_checksums"], raw_write),
            "random": speed_over(reads["ours_random"], reads["raw_random"]),
            "sequential": speed_over(reads["ours_sequential"], reads["raw_sequential"]),
        }
        numbers = {"num_blocks": self._blocks.count, "bytes": self._blocks.nbytes}
        return {"ratios": ratios, "raw_numbers": {**numbers, "write_s": writes, "read_s": reads}}

    def _writes(self) -> dict[str, list[float]]:
        writes, slots, io_threads = self._blocks.writes(), self._blocks.slots, self._sizes.io_threads
        slots_per_call = max(1, MAX_APPEND_BYTES // self._layout.slot_bytes)
        with (
            self._store() as store,
            self._raw_file(num_write_threads(io_threads)) as raw,
            ThreadPoolExecutor(io_threads, thread_name_prefix="checksum") as threads,
        ):

            def ours(make: Callable[[], list[BlockWrite]]) -> float:
                took_s = _timed(lambda: write_all(store, make()))
                # Not the one that is being appended to: its space would be freed within a later round.
                for segment in sorted(self._directory.glob("*.kv"))[:-1]:
                    segment.unlink()
                return took_s

            def bare(*, preallocate: bool) -> float:
                raw.start_anew()
                return _timed(lambda: raw.write(slots, slots_per_call, preallocate=preallocate))

            def computing() -> list[BlockWrite]:
                sums = threads.map(lambda slot: layer_checksums(self._layout, slot), slots)
                return [replace(w, layer_checksums=s) for w, s in zip(writes, sums, strict=True)]

            return alternate(
                {
                    "ours": lambda number: ours(lambda: writes),
                    "raw": lambda number: bare(preallocate=False),
                    "ours_computing_checksums": lambda number: ours(computing),
                    "raw_preallocated": lambda number: bare(preallocate=True),
                },
                self._sizes.rounds,
            )

    def _reads(self) -> dict[str, list[float]]:
        blocks = self._blocks
        with self._store() as store, self._raw_file(self._sizes.io_threads) as raw:
            locations = write_all(store, blocks.writes())
            raw.write(blocks.slots, 1, preallocate=False)

            def ours(calls: list[list[int]]) -> float:
                took_s = 0.0
                for order in calls:
                    reads = blocks.reads(locations, order)
                    started_s = time.perf_counter()
                    results = store.read(reads, DEADLINE_S)
                    took_s += time.perf_counter() - started_s
                    check_read(results)
                return took_s

            def bare(calls: list[list[int]]) -> float:
                took_s = 0.0
                for order in calls:
                    offsets = [i * self._layout.slot_bytes for i in order]
                    slots = [blocks.slots[i] for i in order]
                    started_s = time.perf_counter()
                    raw.read(offsets, slots)
                    took_s += time.perf_counter() - started_s
                return took_s

            in_order = [list(range(blocks.count))]
            return alternate(
                {
                    "ours_random": lambda number: ours(_scattered(blocks.count, number)),
                    "raw_random": lambda number: bare(_scattered(blocks.count, number)),
                    "ours_sequential": lambda number: ours(in_order),
                    "raw_sequential": lambda number: bare(in_order),
                },
                self._sizes.rounds,
            )

    @contextmanager
    def _store(self) -> Iterator[SsdStore]:
        """An empty store; it is removed in the end."""
        store = SsdStore(
            self._directory,
            self._layout,
            writer_id="bench",
            io_threads=self._sizes.io_threads,
            durability="none",
        )
        try:
            yield store
        finally:
            store.close()
            shutil.rmtree(self._directory)

    def _raw_file(self, num_threads: int) -> RawFile:
        direct = probe_direct(files=PosixFiles(), directory=self._folder)
        return RawFile(self._folder / "raw", num_threads=num_threads, direct=direct)


def num_write_threads(io_threads: int) -> int:
    """How many of its threads a store gives to writes."""
    return -(-io_threads // 2)


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _scattered(count: int, seed: int) -> list[list[int]]:
    """Two calls that read every block once, no two neighbours in one; the same for both sides of a round."""
    random_ = random.Random(seed)
    calls = [list(range(first, count, 2)) for first in (0, 1)]
    for order in calls:
        random_.shuffle(order)
    return calls
