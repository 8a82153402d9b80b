"""CRC32C of bytes in host memory: how this room tells that a block is what was written.

The sum is taken over numpy views without a copy, and the GIL is released meanwhile.
"""

from __future__ import annotations

import google_crc32c

from kvstore.layout import BlockLayout
from kvstore.store import Bytes


def checksum(view: Bytes) -> int:
    """CRC32C of a contiguous view."""
    return int(google_crc32c.value(view))


def layer_checksums(layout: BlockLayout, data: Bytes, num_tokens: int | None = None) -> tuple[int, ...]:
    """CRC32C of the first `num_tokens` tokens (None: all) of each Layer Block of the block `data`."""
    tokens = layout.block_tokens if num_tokens is None else num_tokens
    nbytes = tokens * layout.token_bytes
    starts = (layout.layer_offset(layer) for layer in range(layout.num_layers))
    return tuple(checksum(data[start : start + nbytes]) for start in starts)
