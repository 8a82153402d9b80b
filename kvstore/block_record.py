"""The bytes of the SSD store's files: format version 1. Pure; little-endian throughout.

    segment  = segment header (1 page) | record | record | ... | footer (once its writer has ended it)
    record   = record header (whole pages) | Full Block | zeros or slot padding up to a page
    footer   = keys | parent keys | header CRCs, of every record, zeros up to a page | trailer (1 page)

Everything starts on a page, so that O_DIRECT may move a record straight between SSD and a staging slot.
All records of a segment have the same size, so record i begins at a place that needs no list.

Every part carries a CRC32C. A record's header holds one of every Layer Block, one of the whole Full Block
and one of itself; the last is also in the block's location. So bytes that are torn, stale, swapped with
another block's or damaged do not verify, and a record describes itself without any index. The footer
only saves reading every record's header; without it, or where it is damaged, they are read.

    segment header   magic, version, JSON bytes, JSON: who wrote it and what the blocks are; at the page's
                     end its CRC. Magic, version and CRC stay where they are in every version.
    record header    CRC of the rest, magic, key, parent key, block bytes, layers, CRC of the Full Block,
                     a CRC per Layer Block
    trailer          magic, records, CRC of the three lists; at the page's end its CRC
"""

from __future__ import annotations

import json
import struct
from array import array
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kvstore.checksum import checksum, combine
from kvstore.errors import LayoutError
from kvstore.keys import KEY_BYTES, BlockKey, WeightsId
from kvstore.layout import PAGE_BYTES, BlockLayout, KVFormat, KVGroup
from kvstore.store import BlockWrite, Bytes

FORMAT_VERSION = 1

HOLE = 0
"""In a footer, the header CRC of a place that holds no record: its write failed. A record whose header
really sums to it, one in 2**32, is not found again once its segment was closed."""

_SEGMENT_MAGIC = b"DPKVSEGM"
_RECORD_MAGIC = b"KVRC"
_TRAILER_MAGIC = b"DPKVFOOT"
_CRC = struct.Struct("<I")
_SEGMENT = struct.Struct("<8sII")
_RECORD = struct.Struct(f"<I4s{KEY_BYTES}s{KEY_BYTES}sQII")
_TRAILER = struct.Struct("<8sQI")
_ENTRY_BYTES = 2 * KEY_BYTES + _CRC.size
_PAGE_CRC_OFFSET = PAGE_BYTES - _CRC.size


class UnreadableSegment(Exception):
    """The first page is not the header of a segment that this version can read; the text says why."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What every record of a segment has in common."""

    weights_id: WeightsId
    writer_id: str
    created_s: float
    """Its writer's wall clock, seconds since the epoch."""
    layout: BlockLayout

    def encode(self) -> bytes:
        """One page. Raises LayoutError where the description does not fit."""
        blocks = json.dumps({"block_tokens": self.layout.block_tokens, **asdict(self.layout.format)})
        fields = {
            "weights_id": self.weights_id,
            "writer_id": self.writer_id,
            "created_s": self.created_s,
            "blocks": blocks,
        }
        text = json.dumps(fields).encode()
        if _SEGMENT.size + len(text) > _PAGE_CRC_OFFSET:
            raise LayoutError(
                f"the KV format takes {len(text)} bytes to describe and a segment's header has room for "
                f"{_PAGE_CRC_OFFSET - _SEGMENT.size}; use fewer or shorter names of KV groups"
            )
        return _sealed_page(_SEGMENT.pack(_SEGMENT_MAGIC, FORMAT_VERSION, len(text)) + text)

    @classmethod
    def decode(cls, page: Bytes) -> SegmentHeader:
        """Raises UnreadableSegment."""
        if len(page) < PAGE_BYTES:
            raise UnreadableSegment("shorter than a segment's header")
        magic, version, nbytes = _SEGMENT.unpack_from(page.data)
        if magic != _SEGMENT_MAGIC:
            raise UnreadableSegment("no segment header")
        if not _is_sealed(page):
            raise UnreadableSegment("damaged segment header")
        if version != FORMAT_VERSION:
            raise UnreadableSegment(f"format version {version}, this is version {FORMAT_VERSION}")
        try:
            fields = json.loads(page[_SEGMENT.size : _SEGMENT.size + nbytes].tobytes())
            weights_id, writer_id = WeightsId(str(fields["weights_id"])), str(fields["writer_id"])
            return cls(weights_id, writer_id, float(fields["created_s"]), _decode_layout(fields["blocks"]))
        except (ValueError, KeyError, TypeError, LayoutError) as error:
            raise UnreadableSegment("segment header that does not describe blocks") from error


@lru_cache(maxsize=64)
def _decode_layout(text: str) -> BlockLayout:
    """The same object for the same text: a store has thousands of segments and few layouts."""
    fields: dict[str, Any] = json.loads(text)
    block_tokens = int(fields.pop("block_tokens"))
    fields["groups"] = tuple(KVGroup(**group) for group in fields["groups"])
    return BlockLayout(KVFormat(**fields), block_tokens)


def describe_layout(layout: BlockLayout) -> str:
    """For messages: what two layouts may differ in."""
    return (
        f"KV format {layout.format.digest().hex()}, {layout.num_layers} layers "
        f"x {layout.layer_block_bytes} bytes, {layout.block_tokens} tokens a block"
    )


# Records -----------------------------------------------------------------------------------------


def record_header_bytes(layout: BlockLayout) -> int:
    """Whole pages that hold a record's header."""
    return _whole_pages(_RECORD.size + layout.num_layers * _CRC.size)


def record_bytes(layout: BlockLayout) -> int:
    """A record: header and Full Block, each rounded up to whole pages."""
    return record_header_bytes(layout) + layout.slot_bytes


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What a record says of itself."""

    key: BlockKey
    parent: BlockKey
    block_checksum: int
    """CRC32C of the Full Block."""
    layer_checksums: bytes
    """Layer sums (kvstore.checksum)."""
    checksum: int
    """CRC32C of the header: the location's."""


def encode_record_header(layout: BlockLayout, write: BlockWrite, into: Bytes) -> int:
    """Fill `into`, `record_header_bytes` long; return the header's CRC32C.

    The Full Block's checksum is made from those of its layers, not from `write.data`: what has happened to
    the data since they were taken is found by whoever reads the record.
    """
    sums = write.layer_checksums
    assert len(write.key) == len(write.parent) == KEY_BYTES, (write.key, write.parent)
    assert len(sums) == layout.num_layers * _CRC.size, (len(sums), layout.num_layers)
    into[:] = 0
    block_checksum = combine(np.frombuffer(sums, "<u4").tolist(), layout.layer_block_bytes)
    shape = (layout.full_block_bytes, layout.num_layers)
    _RECORD.pack_into(into.data, 0, 0, _RECORD_MAGIC, write.key, write.parent, *shape, block_checksum)
    into[_RECORD.size : _RECORD.size + len(sums)] = np.frombuffer(sums, np.uint8)
    crc = checksum(into[_CRC.size :])
    _CRC.pack_into(into.data, 0, crc)
    return crc


def decode_record_header(layout: BlockLayout, header: Bytes) -> RecordHeader | None:
    """None where `header`, `record_header_bytes` long, is not that of a block of `layout`."""
    crc, magic, key, parent, nbytes, num_layers, block_checksum = _RECORD.unpack_from(header.data)
    if (magic, nbytes, num_layers) != (_RECORD_MAGIC, layout.full_block_bytes, layout.num_layers):
        return None
    if crc != checksum(header[_CRC.size :]):
        return None
    sums = header[_RECORD.size : _RECORD.size + num_layers * _CRC.size].tobytes()
    return RecordHeader(BlockKey(key), BlockKey(parent), block_checksum, sums, crc)


def verify_record(
    layout: BlockLayout, header: Bytes, data: Bytes, key: BlockKey, header_checksum: int
) -> bytes | None:
    """The block's layer sums if `header` and `data` are the record of `key`; None if not.

    `header_checksum` comes with the location: a stale record of the same key fails too. The data is read
    once, as a whole; the layers' checksums are the header's, which its own protects.
    """
    record = decode_record_header(layout, header)
    if record is None or record.key != key or record.checksum != header_checksum:
        return None
    matches = checksum(data[: layout.full_block_bytes]) == record.block_checksum
    return record.layer_checksums if matches else None


# Footer ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Footer:
    """The list of a segment's records, in the order of their places."""

    keys: bytes
    """KEY_BYTES per record."""
    parents: bytes
    """KEY_BYTES per record."""
    checksums: array[int]
    """Per record, 'I': its header's CRC32C, or HOLE."""

    def encode(self) -> bytes:
        """Whole pages; the last one is the trailer."""
        num_records = len(self.checksums)
        assert len(self.keys) == len(self.parents) == num_records * KEY_BYTES
        crcs = np.asarray(self.checksums, "<u4").tobytes()
        entries = _padded(self.keys + self.parents + crcs)
        entries_crc = checksum(np.frombuffer(entries, np.uint8))
        return entries + _sealed_page(_TRAILER.pack(_TRAILER_MAGIC, num_records, entries_crc))

    @classmethod
    def decode(cls, entries: bytes, trailer: Trailer) -> Footer | None:
        """None where `entries`, `footer_entries_bytes` long, are not those the trailer closes."""
        n = trailer.num_records
        if checksum(np.frombuffer(entries, np.uint8)) != trailer.entries_checksum:
            return None
        checksums = array("I")
        crcs = np.frombuffer(entries, "<u4", n, 2 * KEY_BYTES * n)
        checksums.frombytes(crcs.astype(np.uint32, copy=False).tobytes())
        return cls(entries[: KEY_BYTES * n], entries[KEY_BYTES * n : 2 * KEY_BYTES * n], checksums)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last page of a segment whose writer has ended it."""

    num_records: int
    entries_checksum: int

    @classmethod
    def decode(cls, page: bytes) -> Trailer | None:
        """None where the page is no trailer."""
        magic, num_records, entries_checksum = _TRAILER.unpack_from(page)
        if magic != _TRAILER_MAGIC or not _is_sealed(np.frombuffer(page, np.uint8)):
            return None
        return cls(num_records, entries_checksum)


def footer_entries_bytes(num_records: int) -> int:
    """Whole pages that hold the lists of a footer, without its trailer."""
    return _whole_pages(num_records * _ENTRY_BYTES)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


def _padded(content: bytes) -> bytes:
    return content.ljust(_whole_pages(len(content)), b"\0")


def _sealed_page(content: bytes) -> bytes:
    """One page of `content` and, at its end, its CRC."""
    page = content.ljust(_PAGE_CRC_OFFSET, b"\0")
    return page + _CRC.pack(checksum(np.frombuffer(page, np.uint8)))


def _is_sealed(page: Bytes) -> bool:
    (crc,) = _CRC.unpack_from(page.data, _PAGE_CRC_OFFSET)
    return bool(crc == checksum(page[:_PAGE_CRC_OFFSET]))
