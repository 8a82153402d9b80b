"""A link: something that carries bytes at a rate and is shared by what moves over it at the same time."""

from __future__ import annotations

KV_SHARE = 0.01
"""Of a link, that MODEL traffic cannot take."""


class Link:
    """One direction of a NIC, a node's DRAM, or the store. Rates are bytes/s."""

    __slots__ = ("asked", "bytes_per_s", "for_kv", "kind", "total_bytes", "users")

    def __init__(self, kind: str, bytes_per_s: float) -> None:
        self.kind = kind
        self.bytes_per_s = bytes_per_s
        """Infinite without a limit."""
        self.for_kv = bytes_per_s
        """What MODEL traffic leaves."""
        self.asked = 0.0
        """What those that use it now take on average, KV alone."""
        self.users = 0
        self.total_bytes = 0.0

    def give_model(self, bytes_per_s: float) -> None:
        """So much is taken by MODEL traffic from now on, which goes first; but KV is never starved (DualPath,
        arXiv 2602.21548, section 5)."""
        self.for_kv = max(self.bytes_per_s - bytes_per_s, KV_SHARE * self.bytes_per_s)

    def available(self) -> float:
        """What one more user gets: what the others leave, or its fair share if that is more."""
        left, fair = self.for_kv - self.asked, self.for_kv / (self.users + 1)
        return left if left > fair else fair

    def join(self, asked: float) -> None:
        self.asked += asked
        self.users += 1

    def leave(self, asked: float) -> None:
        self.users -= 1
        # Sums of floats do not come back to 0 by themselves.
        self.asked = self.asked - asked if self.users else 0.0
