"""What a client is told when its request cannot be served: an HTTP status and OpenAI's error object."""

from __future__ import annotations

from engines.errors import EngineError, PlacementTimeout, RequestRefused, TurnFailed
from rollout.errors import RolloutError

BUSY_AGAIN_S = 1
"""When a client that found the endpoint busy should come back."""
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


class ApiError(RolloutError):
    """A request that ends in an error; one line says what was wrong and what to do."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 429:
            return {"retry-after": str(BUSY_AGAIN_S)}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """As OpenAI's clients read it."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def of_engines(error: EngineError) -> ApiError:
    """What the client is told when the engines did not serve its turn."""
    message = " ".join(str(error).split())
    if isinstance(error, RequestRefused):
        return ApiError(400, message, code="request_refused")
    if isinstance(error, PlacementTimeout | TurnFailed):
        return ApiError(504, message, code="engines_late")
    return ApiError(503, message, code="engines_failed")
