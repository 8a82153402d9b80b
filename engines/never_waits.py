"""Marks coroutine methods that run from start to end without waiting for anything.

Whoever serves calls from other processes may then run one in place, without a task of its own, which for a
short method costs more than the method. The method stays a coroutine: callers cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def never_waits(method: Method) -> Method:
    """Decorate a coroutine function that awaits nothing that is not done already."""
    method.never_waits = True  # type: ignore[attr-defined]
    return method
