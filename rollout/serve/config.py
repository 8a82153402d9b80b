"""What can be configured about the endpoint: meaning and bounds, no values (those live in conf/)."""

from __future__ import annotations

from dataclasses import dataclass

from engines.bounds import require_above, require_at_least

_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """The OpenAI-compatible endpoint of job=serve and `backend.serve()`."""

    host: str
    """Address to listen on. Anything but loopback asks every client for a bearer token."""
    port: int
    """Port to listen on; 0: any that is free."""
    token_file: str | None
    """A file whose text is the bearer token. null: none is asked for on loopback, elsewhere one is drawn and
    written to run_dir/serve_token."""
    model_name: str | None
    """What clients call the model. null: the last part of model.path."""
    max_body_bytes: int
    """Longest request body."""
    max_requests: int
    """Most requests under way at once; one more is told to come back."""
    request_timeout_s: float
    """Longest a request may take, from its first byte to its last answer."""
    max_sessions: int
    """Most sessions open at once; of as many that have ended the trajectory can be had again."""
    session_idle_s: float
    """A session that is not asked anything for so long ends as timed_out."""

    def __post_init__(self) -> None:
        if not self.host:
            raise ValueError("host must be an address to listen on, got an empty text")
        if not 0 <= self.port <= _LAST_PORT:
            raise ValueError(f"port must be in 0..{_LAST_PORT}, got {self.port}")
        require_at_least(self, 1, "max_body_bytes", "max_requests", "max_sessions")
        require_above(self, 0, "request_timeout_s", "session_idle_s")
