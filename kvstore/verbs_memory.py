"""Registers the rows of memory that transfers name, each once for as long as it lives.

A registration belongs to the array object: while that lives, so does the memory it shows, and when it dies
the registration goes with it. So a staging memory's row is registered once, and a row that is made for one
transfer with that transfer. Nothing is looked up by address alone: other memory may lie there the next time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.transport import Bytes, TransferList
from kvstore.verbs_device import LOCAL_READ, LOCAL_WRITE, Registration, VerbsDevice
from kvstore.verbs_requests import Pieces


@dataclass(frozen=True, slots=True)
class _Row:
    """A registered array."""

    address: int
    nbytes: int
    registration: Registration
    alive: weakref.ref[Bytes]


class RegisteredRows:
    """The rows of one process that one device may touch. Thread-safe."""

    def __init__(self, device: VerbsDevice) -> None:
        self._device = device
        self._rows: dict[int, _Row] = {}
        self._lock = threading.Lock()

    def pieces(self, lists: Sequence[TransferList]) -> Pieces:
        """The lists as one: where each piece is here and there. Raises MemoryRefused."""
        parts = []
        for moves in lists:
            row = self._row(moves.memory)
            parts.append(
                Pieces(
                    moves.local_offsets + row.registration.address,
                    np.full(len(moves), row.registration.lkey, np.int64),
                    moves.remote_offsets,
                    moves.sizes,
                )
            )
        return Pieces.concatenate(parts)

    def close(self) -> None:
        with self._lock:
            self._rows.clear()

    def _row(self, memory: Bytes) -> _Row:
        key, address = id(memory), int(memory.__array_interface__["data"][0])
        row = self._rows.get(key)
        if row is not None and (row.address, row.nbytes) == (address, memory.nbytes):
            return row
        with self._lock:
            access = LOCAL_WRITE if memory.flags.writeable else LOCAL_READ
            registration = self._device.register(address, memory.nbytes, access)
            # It runs wherever the array dies, which may be under the lock.
            alive = weakref.ref(memory, lambda _: self._rows.pop(key, None))
            row = self._rows[key] = _Row(address, memory.nbytes, registration, alive)
            return row
