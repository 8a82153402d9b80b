"""Our store in memory against Mooncake's, through the same interface: both verify what they return.

Mooncake runs with its real master, over TCP, and lends itself this process's memory; blocks lie in memory
registered with it, so that it copies no more often than it must. All memory of both sides is written to
before anything is timed, ours when the store opens, Mooncake's by a rehearsal: a page's first touch costs
ten copies.
"""

from __future__ import annotations

import time
from functools import partial

from kvstore.errors import StoreError
from kvstore.memory_store import MemoryStore
from kvstore.mooncake_config import MooncakeConfig
from kvstore.mooncake_store import MooncakeStore
from kvstore.store import BlockStore
from kvstore.tools.bench.blocks import DEADLINE_S, Blocks, check_read, write_all
from kvstore.tools.bench.figures import Findings, speed_over
from kvstore.tools.bench.mooncake_master import mooncake_master, why_no_mooncake
from kvstore.tools.bench.rounds import alternate
from kvstore.tools.bench.sizes import MIB, BenchSizes, layout_of

GOAL = 1.0
BLOCK_BYTES = MIB
NUM_LAYERS = 61
READS = "memory_reads_over_mooncake"
WRITES = "memory_writes_over_mooncake"
SPARE_BYTES = 256 * MIB
"""Beside what all rounds write and a quarter: headers; and Mooncake evicts before its memory is full."""


def measure_memory(sizes: BenchSizes, findings: Findings) -> None:
    """Add the figures of memory, or why there are none."""
    reason = why_no_mooncake()
    if reason is None:
        try:
            _measure(sizes, findings)
        except StoreError as error:  # it cannot be loaded or does not start: nobody's store is at fault
            reason = str(error)
    if reason is not None:
        findings.left_out |= {READS: reason, WRITES: reason}


def _measure(sizes: BenchSizes, findings: Findings) -> None:
    """Raises StoreError where Mooncake cannot be used."""
    blocks = Blocks(layout_of(BLOCK_BYTES, NUM_LAYERS), sizes.bytes_per_round // 2)
    room = blocks.nbytes * (sizes.rounds + 2) * 5 // 4 + SPARE_BYTES
    with mooncake_master() as address:
        config = MooncakeConfig(address, "tcp", "", memory_bytes=room)
        mooncake = MooncakeStore(config, blocks.layout, writer_id="bench", io_threads=sizes.io_threads)
        mooncake.register(blocks.memory)
        ours = MemoryStore(blocks.layout, room)
        try:
            _touch(mooncake, blocks, sizes.rounds + 2)
            seconds = _take_turns(blocks, {"ours": ours, "mooncake": mooncake}, sizes.rounds)
        finally:
            ours.close()
            mooncake.close()
    findings.series["memory"] = {"num_blocks": blocks.count, "bytes": blocks.nbytes, **seconds}
    for name, kind in ((READS, "read_s"), (WRITES, "write_s")):
        ratio = speed_over(seconds[kind]["ours"], seconds[kind]["mooncake"])
        findings.add_ratio(name, GOAL, {f"{BLOCK_BYTES >> 20} MiB, {NUM_LAYERS} layers": ratio})


def _touch(mooncake: MooncakeStore, blocks: Blocks, batches: int) -> None:
    """Write as much as will be written, and have it forgotten: the same memory is handed out again.

    Raises StoreError where Mooncake does not do that.
    """
    writes = blocks.writes()
    for _ in range(batches):
        write_all(mooncake, writes)
    if mooncake.client.remove_all(True) < 0:
        raise StoreError("Mooncake does not give back the memory that it was filled with")


def _take_turns(
    blocks: Blocks, stores: dict[str, BlockStore], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each side's writes, then of its reads."""
    writes = blocks.writes()
    locations = {name: write_all(store, writes) for name, store in stores.items()}

    def write(name: str, number: int) -> float:
        started_s = time.perf_counter()
        write_all(stores[name], writes)
        return time.perf_counter() - started_s

    def read(name: str, number: int) -> float:
        reads = blocks.reads(locations[name], range(blocks.count))
        started_s = time.perf_counter()
        results = stores[name].read(reads, DEADLINE_S)
        took_s = time.perf_counter() - started_s
        check_read(results)
        return took_s

    return {
        "write_s": alternate({name: partial(write, name) for name in stores}, rounds),
        "read_s": alternate({name: partial(read, name) for name in stores}, rounds),
    }
