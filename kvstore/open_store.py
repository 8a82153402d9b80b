"""Opens the store that the configuration names, and its directory's owner."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from kvstore.config import StoreConfig
from kvstore.files import Files, PosixFiles
from kvstore.mooncake_store import MooncakeStore
from kvstore.ssd_store import SsdStore
from kvstore.staging import StagingMemory
from kvstore.store import BlockStore
from kvstore.store_owner import StoreOwner
from kvstore.usrbio_files import UsrbioFiles


def open_store(
    config: StoreConfig,
    staging: StagingMemory,
    *,
    directory: Path,
    writer_id: str,
    files: Files | None = None,
) -> BlockStore:
    """The store of one node, for blocks that come and go through its `staging` memory.

    `directory` is shared with the other nodes; `writer_id` is the node's own.
    Raises StoreError where it cannot be had.
    """
    layout = staging.layout
    match config.kind:
        case "mooncake":
            assert config.mooncake is not None
            store = MooncakeStore(config.mooncake, layout, writer_id=writer_id, io_threads=config.io_threads)
            store.register(staging.buffer)
            return store
        case "3fs":
            files = files or UsrbioFiles(directory, deadline_s=config.deadline_s)
        case "ssd":
            files = files or PosixFiles()
    return SsdStore(
        directory,
        layout,
        writer_id=writer_id,
        io_threads=config.io_threads,
        durability=config.durability,
        segment_bytes=config.segment_bytes,
        files=files,
    )


def open_owner(
    config: StoreConfig, *, directory: Path, num_writers: int, files: Files | None = None
) -> StoreOwner:
    """The owner of a job's `directory`, which `num_writers` nodes of the job write to and have opened.

    Not for kind mooncake: there is no directory, and Mooncake's master evicts.
    """
    reserve_bytes = config.reserve_bytes
    if reserve_bytes is None:
        room_bytes = config.capacity_bytes or _free_bytes(directory)
        reserve_bytes = min((num_writers + 1) * config.segment_bytes, room_bytes // 2)
    return StoreOwner(
        directory,
        capacity_bytes=config.capacity_bytes,
        reserve_bytes=reserve_bytes,
        lease_ttl_s=config.lease_ttl_s,
        files=files or PosixFiles(),
        clock=time.monotonic,
        segment_bytes=config.segment_bytes,
    )


def _free_bytes(directory: Path) -> int:
    """0 where the directory does not answer: its owner will say so."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
