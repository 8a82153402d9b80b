"""The endpoint for an ordinary, synchronous loop: every method waits for its twin on the backend's event
loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rollout.serve.endpoint import Endpoint
from rollout.types import StopReason, Trajectory

T = TypeVar("T")


class BlockingEndpoint:
    """An endpoint that listens; what `RolloutBackend.serve()` gives."""

    def __init__(self, endpoint: Endpoint, call: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        """`call` runs a coroutine on the event loop and waits for it."""
        self._endpoint = endpoint
        self._call = call

    @property
    def url(self) -> str:
        """With scheme and port, without a path."""
        return self._endpoint.url

    @property
    def base_url(self) -> str:
        """For clients whose requests are not recorded."""
        return self._endpoint.base_url

    @property
    def token(self) -> str | None:
        """The bearer token that clients bring as their API key; None: they need none."""
        return self._endpoint.token

    @property
    def model(self) -> str:
        """What clients call the model."""
        return self._endpoint.model

    def open_session(
        self,
        session_id: str,
        *,
        task_id: str | None = None,
        group_id: str | None = None,
        sample_index: int = 0,
    ) -> str:
        """Begin a trajectory; returns the base URL for its agent. Raises ApiError if the name was used."""

        async def opened() -> str:
            return self._endpoint.open_session(
                session_id, task_id=task_id, group_id=group_id, sample_index=sample_index
            )

        base_url: str = self._call(opened())
        return base_url

    def end_session(
        self,
        session_id: str,
        reward: float = 0.0,
        *,
        stop_reason: StopReason = StopReason.DONE,
        error: str | None = None,
    ) -> Trajectory:
        """End it; the trajectory, or what it ended with before. Raises ApiError if there is none."""

        async def ended() -> Trajectory:
            return self._endpoint.end_session(session_id, reward, stop_reason=stop_reason, error=error)

        trajectory: Trajectory = self._call(ended())
        return trajectory
