"""The BlockStore seam: batched reads into slots and writes from slots, success per block.

A store moves Full Blocks between its medium and memory the caller owns. It keeps no index: a writer
is told where each block went (`BlockLocation`) and announces it; a reader brings that location back.
Calls block, release the GIL while bytes move, and are made from the node agent's I/O threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from threading import Event
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kvstore.keys import BlockKey, WeightsId
from kvstore.pickled_by_fields import pickled_by_fields

Bytes = npt.NDArray[np.uint8]


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class BlockLocation:
    """Where a store put a block. Opaque to everybody but the store that made it."""

    segment: str
    offset: int
    nbytes: int
    """Bytes of the record on the medium, header and padding included."""
    checksum: int
    """CRC32C of the record's header, which itself holds the checksum of every Layer Block."""


class ReadStatus(Enum):
    """What became of one block's read. Everything but OK is a miss."""

    OK = "ok"
    MISSING = "missing"
    """The segment or the record is not there (evicted, lost, truncated)."""
    CORRUPT = "corrupt"
    """Bytes arrived, and they are not what was written."""
    FAILED = "failed"
    """The medium answered with an error."""
    TIMED_OUT = "timed_out"
    """No answer by the deadline; the slot must not be reused until the result's `settled` is set."""


@dataclass(frozen=True, slots=True)
class BlockRead:
    """Read the block `key` at `location` into `into`, one slot of at least full_block_bytes."""

    key: BlockKey
    location: BlockLocation
    into: Bytes


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class BlockReadResult:
    """Outcome of one read; `layer_checksums` (layer sums, kvstore.checksum) only where it is OK."""

    status: ReadStatus
    layer_checksums: bytes = b""
    settled: Event | None = field(default=None, compare=False)
    """TIMED_OUT only: set once the read no longer touches its slot."""


@dataclass(frozen=True, slots=True)
class BlockWrite:
    """Write the Full Block that `data` begins with under `key`; its checksums come from where it was made.

    A whole slot, padding and all, may leave from where it is; anything less may cost a copy.
    """

    key: BlockKey
    parent: BlockKey
    """The key of the block before it in its context; the chain root for the first."""
    weights_id: WeightsId
    data: Bytes
    layer_checksums: bytes


class BlockStore(Protocol):
    """Batched block I/O. Thread-safe. Never raises for a single block: its result says what happened."""

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        """Read every block and verify it against its checksums on the bytes that arrived.

        `deadline_s` is seconds from now. Results are in the order of `reads`.
        """
        ...

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        """Append the blocks; None where a block was not stored (store full, read-only, too late)."""
        ...

    def close(self) -> None:
        """Finish what is in flight and release files. Idempotent."""
        ...
