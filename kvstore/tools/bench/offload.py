"""Our store on SSD against Mooncake's SSD offload: reads of the same blocks by the same number of threads.

Both through the same interface, which verifies every block. Mooncake writes a copy of each block to SSD in
the background; here its copies in memory are dropped, so that reads come from its files.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kvstore.errors import StoreError
from kvstore.mooncake_config import MooncakeConfig
from kvstore.mooncake_store import MooncakeStore, object_name
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockStore
from kvstore.tools.bench.blocks import DEADLINE_S, Blocks, check_read, write_all
from kvstore.tools.bench.figures import Findings, speed_over
from kvstore.tools.bench.mooncake_master import mooncake_master, why_no_mooncake
from kvstore.tools.bench.rounds import alternate
from kvstore.tools.bench.sizes import MIB, BenchSizes, layout_of

GOAL = 1.0
BLOCK_BYTES = MIB
NUM_LAYERS = 61
READS = "ssd_reads_over_mooncake_offload"
OFFLOAD_DEADLINE_S = 30.0
LEASE_MS = 200
"""How long Mooncake keeps a copy after somebody asked where it is."""
_SPARE_BYTES = 512 * MIB
_BUCKET_BLOCKS = 8
POLL_S = 0.5


def measure_offload(folder: Path, sizes: BenchSizes, findings: Findings) -> None:
    """Add the figure of reads from SSD, or why there is none. `folder` is left as it was."""
    reason = why_no_mooncake()
    if reason is None:
        try:
            _measure(folder, sizes, findings)
        except StoreError as error:  # it cannot be loaded, or does not offload here
            reason = str(error)
    if reason is not None:
        findings.left_out[READS] = reason


def _measure(folder: Path, sizes: BenchSizes, findings: Findings) -> None:
    """Raises StoreError where Mooncake cannot be used."""
    least = 3 * _BUCKET_BLOCKS * BLOCK_BYTES
    blocks = Blocks(layout_of(BLOCK_BYTES, NUM_LAYERS), max(least, sizes.bytes_per_round // 2))
    theirs, ours = folder / "mooncake", folder / "store"
    theirs.mkdir()
    try:
        with (
            _environment(blocks),
            mooncake_master("-enable_offload=true", f"-default_kv_lease_ttl={LEASE_MS}") as address,
        ):
            num_blocks, seconds = _take_turns(blocks, sizes, address, theirs, ours)
    finally:
        shutil.rmtree(theirs)
        shutil.rmtree(ours, ignore_errors=True)
    findings.series["offload"] = {"num_blocks": num_blocks, "read_s": seconds}
    ratio = speed_over(seconds["ours"], seconds["mooncake"])
    findings.add_ratio(READS, GOAL, {f"{BLOCK_BYTES >> 20} MiB, {NUM_LAYERS} layers": ratio})


def _take_turns(
    blocks: Blocks, sizes: BenchSizes, address: str, theirs: Path, ours: Path
) -> tuple[int, dict[str, list[float]]]:
    """How many blocks each side reads, in random order, and the seconds this takes."""
    config = MooncakeConfig(address, "tcp", "", memory_bytes=blocks.nbytes + _SPARE_BYTES)
    threads = sizes.io_threads
    mooncake = MooncakeStore(
        config, blocks.layout, writer_id="bench", io_threads=threads, offload_path=theirs
    )
    store = SsdStore(ours, blocks.layout, writer_id="bench", io_threads=threads, durability="none")
    stores: dict[str, BlockStore] = {"ours": store, "mooncake": mooncake}
    try:
        mooncake.register(blocks.memory)
        locations = {name: write_all(side, blocks.writes()) for name, side in stores.items()}
        names = [object_name(location) for location in locations["mooncake"]]
        kept = _leave_on_ssd(mooncake.client, names)

        def read(name: str, number: int) -> float:
            order = random.Random(number).sample(kept, len(kept))
            reads = blocks.reads(locations[name], order)
            started_s = time.perf_counter()
            results = stores[name].read(reads, DEADLINE_S)
            took_s = time.perf_counter() - started_s
            check_read(results)
            return took_s

        return len(kept), alternate({name: partial(read, name) for name in stores}, sizes.rounds)
    finally:
        store.close()
        mooncake.close()


def _leave_on_ssd(client: Any, names: Sequence[str]) -> list[int]:
    """Let Mooncake put these on SSD and drop its copies in memory; returns which ones are left.

    It writes whole buckets, so a few are still waiting for company when all others are there. Raises
    StoreError where it does not come to that.
    """
    deadline_s = time.monotonic() + OFFLOAD_DEADLINE_S
    while len(_on_ssd(client, names)) <= len(names) - _BUCKET_BLOCKS:
        if time.monotonic() >= deadline_s:
            raise StoreError(f"Mooncake has not offloaded {len(names)} blocks in {OFFLOAD_DEADLINE_S:.0f} s")
        time.sleep(POLL_S)
    kept = _on_ssd(client, names)
    while any(copy.is_memory_replica() for copies in _copies(client, names) for copy in copies):
        if time.monotonic() >= deadline_s:
            raise StoreError("Mooncake does not drop its copies in memory")
        time.sleep(POLL_S)  # asking where a copy is protects it for a while
        client.batch_replica_clear(names, client.get_hostname())
    return kept


def _on_ssd(client: Any, names: Sequence[str]) -> list[int]:
    found = _copies(client, names)
    return [i for i, copies in enumerate(found) if any(copy.is_local_disk_replica() for copy in copies)]


def _copies(client: Any, names: Sequence[str]) -> list[list[Any]]:
    """The copies of each object; none of one that is gone."""
    found = client.batch_get_replica_desc(names)
    return [found.get(name, []) for name in names]


@contextmanager
def _environment(blocks: Blocks) -> Iterator[None]:
    """What Mooncake takes from the environment only: offload soon, in small buckets; room for a batch."""
    wanted = {
        "MOONCAKE_OFFLOAD_HEARTBEAT_INTERVAL_SECONDS": "1",
        "MOONCAKE_OFFLOAD_BUCKET_SIZE_LIMIT_BYTES": str(_BUCKET_BLOCKS * BLOCK_BYTES),
        "MOONCAKE_OFFLOAD_LOCAL_BUFFER_SIZE_BYTES": str(2 * blocks.nbytes),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
