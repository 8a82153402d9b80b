"""Opens the store and the transport that the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kvstore.config import StoreConfig
from kvstore.layout import BlockLayout
from kvstore.shm_transport import SharedMemoryTransport
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockStore
from kvstore.transport import Transport


def open_store(config: StoreConfig, layout: BlockLayout, *, directory: Path, writer_id: str) -> BlockStore:
    """The store of one node. `directory` is shared with the other nodes; `writer_id` is the node's own."""
    match config.kind:
        case "ssd":
            return SsdStore(directory, layout, writer_id=writer_id, io_threads=config.io_threads)


def open_transport(name: Literal["shm"]) -> Transport:
    """The transport between engines and nodes."""
    match name:
        case "shm":
            return SharedMemoryTransport()
