"""Traffic classes, and what each is called on every fabric.

One table maps a class to its verbs service level and traffic class, its IP DSCP and its I/O priority.
MODEL (collectives, activations) goes first, about 99 %; KV (every block move) fills the gaps
(DualPath, arXiv 2602.21548, section 5 and A.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class TrafficClass(Enum):
    """Why the bytes move."""

    MODEL = "model"
    KV = "kv"


@dataclass(frozen=True, slots=True)
class ClassSettings:
    """One row of the class table."""

    service_level: int
    """InfiniBand service level (0..15)."""
    dscp: int
    """IP differentiated-services code point (0..63); the RoCE traffic class is dscp << 2."""
    io_priority: int
    """Linux best-effort I/O priority (0 first .. 7 last)."""


CLASS_TABLE: dict[TrafficClass, ClassSettings] = {
    TrafficClass.MODEL: ClassSettings(service_level=0, dscp=46, io_priority=0),
    TrafficClass.KV: ClassSettings(service_level=2, dscp=10, io_priority=4),
}
