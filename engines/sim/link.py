"""A link: something that carries bytes at a rate and is shared by what moves over it at the same time."""

from __future__ import annotations


class Link:
    """One direction of a NIC, a node's DRAM, or the store. Rates are bytes/s."""

    __slots__ = ("asked", "bytes_per_s", "kind", "model_bytes_per_s", "total_bytes", "users")

    def __init__(self, kind: str, bytes_per_s: float) -> None:
        self.kind = kind
        self.bytes_per_s = bytes_per_s
        """Infinite without a limit."""
        self.model_bytes_per_s = 0.0
        """What MODEL traffic takes, which goes first."""
        self.asked = 0.0
        """What those that use it now take on average, KV alone."""
        self.users = 0
        self.total_bytes = 0.0

    @property
    def for_kv(self) -> float:
        """What MODEL traffic leaves; KV is never starved (DualPath, arXiv 2602.21548, section 5)."""
        return max(self.bytes_per_s - self.model_bytes_per_s, 0.01 * self.bytes_per_s)

    def available(self) -> float:
        """What one more user gets: what the others leave, or its fair share if that is more."""
        rate = self.for_kv
        fair, left = rate / (self.users + 1), rate - self.asked
        return left if left > fair else fair

    def join(self, asked: float) -> None:
        self.asked += asked
        self.users += 1

    def leave(self, asked: float) -> None:
        self.users -= 1
        # Sums of floats do not come back to 0 by themselves.
        self.asked = self.asked - asked if self.users else 0.0
