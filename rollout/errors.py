"""Errors of the rollout room, and which failures are data.

RolloutError
`- UserError    bad input; the message is one line that says what to change; nothing was started

A bad rollout is data: a limit, a tool's failure or an engine's ends a trajectory with a StopReason, and
its siblings go on. A bad cluster is a crash: configuration, invariants and the trainer stop the process.
"""

from __future__ import annotations


class RolloutError(Exception):
    """Root of this room's errors."""


class UserError(RolloutError):
    """Bad input; the message is one line that says what to change. Exit code 2."""
