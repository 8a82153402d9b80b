"""Errors of the kvstore room.

KvStoreError
|- LayoutError      a format or block size that cannot be; nothing was touched
|- StagingError     staging memory cannot be made, mapped or served, or holds too few slots
|- TransportUnavailable  this machine lacks what the transport needs; nothing was opened
|- StoreError       the store as a whole cannot serve (unwritable, another format); blocks are as before
`- TransferError    bytes did not arrive; the destination is undefined and must not be read
   `- LateWrite     a write failed and may still put bytes down: its place must not be used again
"""

from __future__ import annotations


class KvStoreError(Exception):
    """Root of this room's errors."""


class LayoutError(KvStoreError):
    """A KV format or block size that cannot be."""


class StagingError(KvStoreError):
    """Staging memory cannot be made, mapped or served, or holds too few slots; nothing was reserved."""


class TransportUnavailable(KvStoreError):
    """This machine lacks what the transport needs; nothing was opened."""


class StoreError(KvStoreError):
    """The store as a whole cannot serve; what it held is as before."""


class TransferError(KvStoreError):
    """Bytes did not arrive; the destination is undefined."""


class LateWrite(TransferError):
    """A write failed, and its bytes may still arrive until the peer is known to be dead."""
