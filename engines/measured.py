"""What nodes and engines have counted and measured of their own work, for figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeBytes:
    """Bytes a node moved through its storage NIC since it started, by why."""

    read_prefill_side: int = 0
    read_decode_side: int = 0
    read_dram: int = 0
    written: int = 0
    read_ahead: int = 0
    """Into the node's memory, before any turn asked for it."""
    moved_to_prefill: int = 0
    """Given up here before they were begun, for the prefill side's node to read."""
    moved_to_decode: int = 0

    @property
    def storage_total(self) -> int:
        return self.read_prefill_side + self.read_decode_side + self.read_ahead + self.written


@dataclass(frozen=True, slots=True)
class Forward:
    """One step of a runner that models its times."""

    started_s: float
    """On the host's monotonic clock."""
    duration_s: float
    """Waiting for KV included."""
    attention_s: float
    """Attention's part of what was computed, all layers; 0 for a decode step."""
    new_tokens: int
    kv_tokens: int
    """Tokens that were attended to."""
    round: int = 0
    """The group's round that it was part of, from 1; 0 where engines form no group."""
    late_s: float = 0.0
    """How long after its modelled time it ended. Beyond a few ms, the host is too busy to trust it."""


@dataclass(slots=True)
class TokenCounts:
    """What a runner computed, by kind."""

    prompt: int = 0
    """Tokens run as part of a prompt."""
    first: int = 0
    """Outputs sampled from a prompt's last position."""
    decode: int = 0
    """Outputs sampled in the continuous batch."""
    verified: int = 0
    """Tokens whose KV a paced runner checked, every byte of every layer."""
