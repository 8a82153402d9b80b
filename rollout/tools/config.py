"""How tools are called: meaning and bounds, no values. A tool's own decorator may say otherwise of it."""

from __future__ import annotations

from dataclasses import dataclass

from engines.bounds import require_above, require_at_least


@dataclass(frozen=True, slots=True)
class ToolsConfig:
    """What holds for every call of a tool; of each agent worker, where it counts calls."""

    timeout_s: float
    """Longest one attempt may take, and longest a call waits for one of the tool's places."""
    max_concurrent: int
    """Most calls of one tool at a time. A function that never returns keeps its place."""
    attempts: int
    """Times a call is tried if its tool is idempotent; the others are tried once."""
    backoff_s: float
    """Mean pause before the second attempt; it doubles with each further one, at random around the mean."""
    failures_to_cut_off: int
    """So many failures of a tool in a row cut it off."""
    cut_off_s: float
    """How long a tool is cut off: its calls are refused. Then one more failure cuts it off again."""
    max_malformed_calls: int
    """So many malformed calls in a row end a trajectory without reward."""

    def __post_init__(self) -> None:
        require_above(self, 0, "timeout_s", "cut_off_s")
        require_at_least(self, 0, "backoff_s")
        require_at_least(self, 1, "max_concurrent", "attempts", "failures_to_cut_off", "max_malformed_calls")
