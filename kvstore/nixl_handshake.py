"""What a client of the NIXL transport and its server tell each other in the keyed handshake. Pure.

After an answer that is OK the server sends its agent's metadata, of as many bytes as the answer says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from kvstore.keyed_handshake import Dialect, HandshakeError

_ANSWER = struct.Struct("!BQI")
NIXL_DIALECT = Dialect(b"DPNIXL01", 16, _ANSWER.size)
"""The wish is a region id. It names no class, as NIXL has no use for one."""
MAX_METADATA_BYTES = 1 << 24


class Status(IntEnum):
    """What becomes of a wish."""

    OK = 0
    OTHER_INCARNATION = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says to a client that knows the token. With a status that is not OK the rest is zero."""

    status: Status
    address: int
    """Of the region, in the server's process."""
    metadata_bytes: int

    def pack(self) -> bytes:
        return _ANSWER.pack(self.status, self.address, self.metadata_bytes)

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        """Raises HandshakeError if the metadata are absurdly large."""
        status, address, metadata_bytes = _ANSWER.unpack(data)
        if metadata_bytes > MAX_METADATA_BYTES:
            raise HandshakeError(f"it announces {metadata_bytes} bytes of metadata")
        return cls(Status(status), address, metadata_bytes)
