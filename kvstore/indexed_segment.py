"""What the prefix index knows of one segment: its records in compact arrays, its size, its use.

A table in memory: no I/O, no clock. It does not know which keys of other segments are stored; whoever keeps
the table of keys says which records are dead.
"""

from __future__ import annotations

import math
import re
from array import array

import numpy as np
import numpy.typing as npt

from kvstore.keys import KEY_BYTES, BlockKey, WeightsId
from kvstore.segment_contents import SegmentContents
from kvstore.store import BlockLocation

_FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.([0-9]+)\.kv")


class IndexedSegment:
    """One segment, of one weights id. Stores that keep no files name theirs as they like."""

    __slots__ = (
        "_checksums",
        "_end_bytes",
        "_file_bytes",
        "_offsets",
        "created_s",
        "dead",
        "keys",
        "last_use",
        "name",
        "num_live",
        "ordinal",
        "parents",
        "record_bytes",
        "sequence",
        "weights_id",
        "writer_id",
    )

    def __init__(self, name: str, weights_id: WeightsId, ordinal: int, last_use: int) -> None:
        parts = _FILE_NAME.fullmatch(name)
        self.name = name
        self.weights_id = weights_id
        self.ordinal = ordinal
        self.writer_id = parts[1] if parts else name
        self.sequence = int(parts[2]) if parts else 0
        self.created_s = math.inf
        """Seconds since the epoch; infinite until somebody knows it."""
        self.last_use = last_use
        self.record_bytes = 0
        """Bytes of every record; 0 while there is none."""
        self._end_bytes = self._file_bytes = 0
        self.clear()

    def clear(self) -> None:
        """Forget the records; the segment's size stays as it is."""
        self.keys = bytearray()
        """KEY_BYTES per record."""
        self.parents = bytearray()
        """KEY_BYTES per record: the key of the block before it in its context."""
        self.dead = bytearray()
        """A byte per record: 1 for one that no lookup may find (lost, or announced elsewhere since)."""
        self._offsets = array("Q")
        self._checksums = array("I")
        self.num_live = 0

    def __len__(self) -> int:
        """Records, the dead ones too."""
        return len(self._offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the segment: as last noted, or up to the end of the last record that is known."""
        return max(self._end_bytes, self._file_bytes)

    def note(self, nbytes: int, created_s: float) -> None:
        """The file was seen to hold `nbytes`. It began when the earliest `created_s` that was told says."""
        self._file_bytes = nbytes
        self.created_s = min(self.created_s, created_s)

    def append(self, key: BlockKey, parent: BlockKey, location: BlockLocation) -> int:
        """Take in a live record; return its number."""
        self._expect_records_of(location.nbytes)
        self.keys += key
        self.parents += parent
        self.dead.append(0)
        self._offsets.append(location.offset)
        self._checksums.append(location.checksum)
        self._end_bytes = max(self._end_bytes, location.offset + location.nbytes)
        self.num_live += 1
        return len(self) - 1

    def extend(self, contents: SegmentContents) -> None:
        """Take in what recovery found, every record live."""
        if len(contents):
            self._expect_records_of(contents.record_bytes)
        self.keys += contents.keys
        self.parents += contents.parents
        self.dead += bytes(len(contents))
        self._offsets += contents.offsets
        self._checksums += contents.checksums
        self.num_live += len(contents)
        self.note(contents.nbytes, contents.created_s)

    def kill(self, record: int) -> None:
        """No lookup finds `record` any more."""
        assert not self.dead[record], (self.name, record)
        self.dead[record] = 1
        self.num_live -= 1

    def key(self, record: int) -> BlockKey:
        return BlockKey(bytes(self.keys[record * KEY_BYTES : (record + 1) * KEY_BYTES]))

    def parent(self, record: int) -> BlockKey:
        return BlockKey(bytes(self.parents[record * KEY_BYTES : (record + 1) * KEY_BYTES]))

    def location(self, record: int) -> BlockLocation:
        return BlockLocation(self.name, self._offsets[record], self.record_bytes, self._checksums[record])

    def places(self, records: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Offsets and checksums of these records."""
        offsets = np.frombuffer(self._offsets, np.uint64)
        return offsets[records], np.frombuffer(self._checksums, np.uint32)[records]

    def all_keys(self) -> list[BlockKey]:
        """Keys of all records in order."""
        keys = bytes(self.keys)
        return [BlockKey(keys[start : start + KEY_BYTES]) for start in range(0, len(keys), KEY_BYTES)]

    def _expect_records_of(self, nbytes: int) -> None:
        assert self.record_bytes in (0, nbytes), (self.name, self.record_bytes, nbytes)
        self.record_bytes = nbytes
