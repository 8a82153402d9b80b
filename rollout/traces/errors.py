"""What a trace that cannot be replayed is answered with: one line that names file, line and field."""

from __future__ import annotations

from rollout.errors import UserError


class TraceError(UserError, ValueError):
    """A trace that cannot be used. Nothing was started."""
