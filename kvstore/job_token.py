"""The secret that the processes of one job share, and nobody else has.

Decides how it is drawn and that it never shows in a text. It does not know what is proven with it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

_TOKEN_BYTES = 32
_MIN_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class JobToken:
    """Drawn once by a job, and handed to its processes with what else they are made from."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < _MIN_TOKEN_BYTES:
            raise ValueError(
                f"a job's token needs at least {_MIN_TOKEN_BYTES} bytes, got {len(self.secret)}; "
                "take one from JobToken.draw()"
            )

    @classmethod
    def draw(cls) -> JobToken:
        """A new one, from the system's source of randomness."""
        return cls(secrets.token_bytes(_TOKEN_BYTES))
