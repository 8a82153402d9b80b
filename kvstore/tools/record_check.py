"""What is wrong with one record, told as exactly as its checksums allow. Pure.

A store only needs to know that a block is bad; here somebody wants to know what happened to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.block_record import RecordHeader, decode_record_header, record_header_bytes
from kvstore.checksum import checksum, layer_checksums, layer_sums
from kvstore.keys import BlockKey
from kvstore.layout import BlockLayout
from kvstore.store import Bytes

CUT_OFF = "no whole record: cut off, or a damaged footer"
HEADER = "record header damaged"
FOOTER = "footer and record disagree"
DATA = "data damaged"
SUMS = "data matches its layers' checksums, not the block's"


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """What a footer says of one record."""

    key: BlockKey
    parent: BlockKey
    checksum: int
    """CRC32C of the record's header."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a record."""

    reason: str
    key: BlockKey | None = None
    """None where nothing that can be trusted names it."""
    layers: tuple[int, ...] = ()
    """Layers whose bytes are not what was written; empty where that cannot be told."""


def check_record(layout: BlockLayout, record: Bytes, listed: ListedRecord | None) -> Fault | None:
    """What is wrong with `record`, the bytes of its place as far as the file goes; None if nothing is.

    `listed` is None where the segment has no footer.
    """
    header_bytes = record_header_bytes(layout)
    end = header_bytes + layout.full_block_bytes
    key = listed.key if listed else None
    if len(record) < end:
        return Fault(CUT_OFF, key)
    header = decode_record_header(layout, record[:header_bytes])
    if header is None:
        return Fault(HEADER, key)
    if listed is not None and listed != ListedRecord(header.key, header.parent, header.checksum):
        return Fault(FOOTER, key)
    return _check_data(layout, record[header_bytes:end], header)


def _check_data(layout: BlockLayout, data: Bytes, header: RecordHeader) -> Fault | None:
    if checksum(data) == header.block_checksum:
        return None
    found, written = layer_sums([layer_checksums(layout, data), header.layer_checksums], layout.num_layers)
    damaged = np.flatnonzero(found != written).tolist()
    return Fault(DATA if damaged else SUMS, header.key, tuple(damaged))
