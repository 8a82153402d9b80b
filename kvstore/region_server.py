"""Lets peers reach the memories of this process, through one kind of transport."""

from __future__ import annotations

from typing import Protocol

from kvstore.staging import StagingMemory
from kvstore.transport import RegionHandle


class RegionServer(Protocol):
    """Thread-safe. Who owns a memory registers it, and closes the server before the memory."""

    def register(self, staging: StagingMemory) -> RegionHandle:
        """From now on peers can read and write it by the handle."""
        ...

    def close(self) -> None:
        """Peers reach nothing here any more, and none of their bytes arrives after this. Idempotent."""
        ...


class SharedMemoryServer:
    """A RegionServer for SharedMemoryTransport: peers map the memory themselves until its owner closes it."""

    def register(self, staging: StagingMemory) -> RegionHandle:
        return staging.handle.region()

    def close(self) -> None:
        pass
