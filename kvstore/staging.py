"""A node's staging memory: Full Blocks in DRAM on their way between SSD, network and HBM.

Decides where a slot, a Layer Block and a run of tokens lie in the segment. It does not know which
slots are in use (kvstore.slots) and what they hold.

    slot s  [s * slot_bytes, (s + 1) * slot_bytes)   page aligned; one Full Block, then padding
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.errors import StagingError
from kvstore.layout import BlockLayout
from kvstore.shared_segment import SharedSegment
from kvstore.transport import Bytes, RegionHandle


@dataclass(frozen=True, slots=True)
class StagingHandle:
    """Names a staging memory to other processes; picklable."""

    node_id: str
    incarnation: str
    """Random, drawn anew at each creation."""
    pid: int
    fd: int
    layout: BlockLayout
    num_slots: int

    @property
    def nbytes(self) -> int:
        """All slots, padding included."""
        return self.num_slots * self.layout.slot_bytes

    def region(self) -> RegionHandle:
        """What a Transport needs to reach it; offsets in it are those of StagingMemory.offset."""
        return RegionHandle(self.node_id, self.incarnation, self.nbytes, f"{self.pid}:{self.fd}")


class StagingMemory:
    """One mapping of a node's staging memory: its owner's, or another process's of the host."""

    def __init__(self, handle: StagingHandle, segment: SharedSegment) -> None:
        self.handle = handle
        self.layout = handle.layout
        self.num_slots = handle.num_slots
        self._segment = segment

    @classmethod
    def create(cls, node_id: str, layout: BlockLayout, num_slots: int) -> StagingMemory:
        """Make the memory and own it: it lives as long as this process, or until close()."""
        if num_slots < 1:
            raise StagingError(
                f"staging memory of {node_id} has room for {num_slots} slots, at least 1 is needed "
                f"(a slot is {layout.slot_bytes} bytes); raise kvstore.staging_bytes"
            )
        segment = SharedSegment.create(node_id, num_slots * layout.slot_bytes)
        pid, fd = (int(part) for part in segment.region.address.split(":"))
        incarnation = segment.region.incarnation
        return cls(StagingHandle(node_id, incarnation, pid, fd, layout, num_slots), segment)

    @classmethod
    def attach(cls, handle: StagingHandle) -> StagingMemory:
        """Map the memory of another process, or raise StagingError if its owner is gone."""
        return cls(handle, SharedSegment.attach(handle.region()))

    @property
    def buffer(self) -> Bytes:
        """All slots."""
        return self._segment.data

    def offset(self, slot_id: int, layer: int = 0, token: int = 0) -> int:
        """Byte offset in the segment, which is also the remote offset of a transfer."""
        layout = self.layout
        assert 0 <= slot_id < self.num_slots, (slot_id, self.num_slots)
        assert 0 <= layer < layout.num_layers, (layer, layout.num_layers)
        assert 0 <= token <= layout.block_tokens, (token, layout.block_tokens)
        return slot_id * layout.slot_bytes + layout.layer_offset(layer) + token * layout.token_bytes

    def slot(self, slot_id: int) -> Bytes:
        """The slot, `slot_bytes` long: the Full Block and its padding."""
        start = self.offset(slot_id)
        return self.buffer[start : start + self.layout.slot_bytes]

    def tokens(self, slot_id: int, layer: int, start: int, stop: int) -> Bytes:
        """The bytes of tokens [start, stop) of one layer of the block in `slot_id`."""
        assert start <= stop, (start, stop)
        first, last = self.offset(slot_id, layer, start), self.offset(slot_id, layer, stop)
        return self.buffer[first:last]

    def close(self) -> None:
        """Let go of the memory; nobody can attach to an owner's after this. Idempotent.

        Views taken before stay valid, and the memory itself is freed when the last view in the
        last process that mapped it dies.
        """
        self._segment.close()
