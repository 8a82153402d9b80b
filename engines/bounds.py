"""Bounds of configuration fields: whoever is out of range is named, with the range and the value."""

from __future__ import annotations

import math


def require_at_least(config: object, minimum: float, *names: str) -> None:
    """Raise ValueError naming the first of the fields that is set and not finite and >= minimum."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} must be >= {minimum}, got {value}")


def require_above(config: object, minimum: float, *names: str) -> None:
    """Raise ValueError naming the first of the fields that is set and not finite and > minimum."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum < value < math.inf:
            raise ValueError(f"{name} must be > {minimum} and finite, got {value}")
