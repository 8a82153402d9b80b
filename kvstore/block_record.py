"""The bytes of the SSD store's files: format version 1. Pure; little-endian throughout.

    segment  = segment header (1 page) | record | record | ...
    record   = record header (whole pages) | Full Block | zeros or slot padding up to a page

Everything starts on a page, so that O_DIRECT may move a record straight between SSD and a staging slot.
Both headers carry a CRC32C of themselves; the record header carries one of every Layer Block, and the
record header's own is also in the block's location. So bytes that are torn, stale, swapped with
another block's or damaged do not verify, and a record describes itself without any index.

    segment header   magic, version, format digest, block tokens, layers, layer block bytes,
                     weights id; at the page's end its CRC
    record header    CRC of the rest, magic, key, block bytes, layers, a CRC32C per Layer Block
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kvstore.checksum import checksum, layer_checksums
from kvstore.keys import KEY_BYTES, BlockKey, WeightsId
from kvstore.layout import PAGE_BYTES, BlockLayout
from kvstore.store import Bytes

FORMAT_VERSION = 1
MAX_WEIGHTS_ID_BYTES = 64

_SEGMENT_MAGIC = b"DPKVSEGM"
_RECORD_MAGIC = b"KVRC"
_CRC = struct.Struct("<I")
_SEGMENT = struct.Struct(f"<8sI16sIIQ{MAX_WEIGHTS_ID_BYTES}s")
_RECORD = struct.Struct(f"<I4s{KEY_BYTES}sQI")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What every record of a segment has in common."""

    version: int
    format_digest: bytes
    block_tokens: int
    num_layers: int
    layer_block_bytes: int
    weights_id: WeightsId

    @classmethod
    def of(cls, layout: BlockLayout, weights_id: WeightsId) -> SegmentHeader:
        return cls(
            FORMAT_VERSION,
            layout.format.digest(),
            layout.block_tokens,
            layout.num_layers,
            layout.layer_block_bytes,
            weights_id,
        )

    def encode(self) -> bytes:
        """One page."""
        weights_id = self.weights_id.encode()
        assert len(weights_id) <= MAX_WEIGHTS_ID_BYTES, self.weights_id
        shape = (self.block_tokens, self.num_layers, self.layer_block_bytes)
        packed = _SEGMENT.pack(_SEGMENT_MAGIC, self.version, self.format_digest, *shape, weights_id)
        page = packed.ljust(PAGE_BYTES - _CRC.size, b"\0")
        return page + _CRC.pack(checksum(np.frombuffer(page, np.uint8)))

    @classmethod
    def decode(cls, page: Bytes) -> SegmentHeader | None:
        """None where the page is not a whole segment header."""
        (crc,) = _CRC.unpack_from(page.data, PAGE_BYTES - _CRC.size)
        magic, version, digest, tokens, layers, nbytes, name = _SEGMENT.unpack_from(page.data)
        if magic != _SEGMENT_MAGIC or crc != checksum(page[: PAGE_BYTES - _CRC.size]):
            return None
        weights_id = WeightsId(name.rstrip(b"\0").decode())
        return cls(version, digest, tokens, layers, nbytes, weights_id)

    def same_format_as(self, other: SegmentHeader) -> bool:
        """Do records of both mean the same, whatever the weights?"""
        return self._format() == other._format()

    def describe(self) -> str:
        return (
            f"version {self.version}, KV format {self.format_digest.hex()}, {self.num_layers} layers "
            f"x {self.layer_block_bytes} bytes, {self.block_tokens} tokens a block"
        )

    def _format(self) -> tuple[int, bytes, int, int, int]:
        shape = (self.block_tokens, self.num_layers, self.layer_block_bytes)
        return (self.version, self.format_digest, *shape)


def record_header_bytes(layout: BlockLayout) -> int:
    """Whole pages that hold a record's header."""
    nbytes = _RECORD.size + layout.num_layers * _CRC.size
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def record_bytes(layout: BlockLayout) -> int:
    """A record: header and Full Block, each rounded up to whole pages."""
    return record_header_bytes(layout) + layout.slot_bytes


def encode_record_header(layout: BlockLayout, key: BlockKey, checksums: tuple[int, ...], into: Bytes) -> int:
    """Fill `into`, `record_header_bytes` long; return the header's CRC32C."""
    assert len(key) == KEY_BYTES, key
    assert len(checksums) == layout.num_layers, (len(checksums), layout.num_layers)
    into[:] = 0
    fields = (_RECORD_MAGIC, key, layout.full_block_bytes, layout.num_layers)
    _RECORD.pack_into(into.data, 0, 0, *fields)
    struct.pack_into(f"<{layout.num_layers}I", into.data, _RECORD.size, *checksums)
    crc = checksum(into[_CRC.size :])
    _CRC.pack_into(into.data, 0, crc)
    return crc


def verify_record(
    layout: BlockLayout, header: Bytes, data: Bytes, key: BlockKey, header_checksum: int
) -> tuple[int, ...] | None:
    """The Layer Blocks' checksums if `header` and `data` are the record of `key`; None if not.

    `header_checksum` comes with the location: a stale record of the same key fails too.
    """
    crc, magic, found, nbytes, num_layers = _RECORD.unpack_from(header.data)
    if crc != header_checksum or crc != checksum(header[_CRC.size :]):
        return None
    wanted = (_RECORD_MAGIC, key, layout.full_block_bytes, layout.num_layers)
    if (magic, found, nbytes, num_layers) != wanted:
        return None
    checksums: tuple[int, ...] = struct.unpack_from(f"<{num_layers}I", header.data, _RECORD.size)
    return checksums if layer_checksums(layout, data) == checksums else None
