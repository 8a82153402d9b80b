"""The sessions of an endpoint: which are open, and what became of those that ended.

A name is used once. Every session that was opened comes back exactly once to `on_ended`, with one outcome:
when its client says so, when nobody asks it anything for too long, or when the endpoint closes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rollout.serve.config import ServeConfig
from rollout.serve.errors import ApiError
from rollout.serve.served_model import ServedModel
from rollout.serve.session import Session
from rollout.serve.wire import SessionEnd, SessionSpec
from rollout.types import StopReason, Trajectory

OnEnded = Callable[[Trajectory], None]
_LOOK_EVERY_S = 1.0
"""At most; how soon an idle session is noticed."""


class Sessions:
    """All methods belong to one event loop."""

    def __init__(
        self,
        model: ServedModel,
        config: ServeConfig,
        on_ended: OnEnded,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._config = config
        self._on_ended = on_ended
        began_s = clock()
        self._clock: Callable[[], float] = lambda: clock() - began_s
        self._open: dict[str, Session] = {}
        self._ended: dict[str, Trajectory] = {}
        """In the order in which they ended; the oldest are forgotten."""
        self._ended_names: set[str] = set()

    def __len__(self) -> int:
        """Those that are open."""
        return len(self._open)

    def open(self, session_id: str, spec: SessionSpec) -> Session:
        """Begin one. Raises ApiError if its name was used or there are too many."""
        if session_id in self._open:
            raise ApiError(409, f"session {session_id} is open already", code="session_exists")
        self._refuse_ended(session_id)
        if len(self._open) >= self._config.max_sessions:
            raise ApiError(
                429,
                f"{len(self._open)} sessions are open, as many as serve.max_sessions allows; end some",
                code="too_many_sessions",
            )
        session = self._open[session_id] = Session(
            session_id,
            self._model,
            task_id=spec.task_id or session_id,
            group_id=spec.group_id or session_id,
            sample_index=spec.sample_index,
            clock=self._clock,
        )
        return session

    def at(self, session_id: str) -> Session:
        """The session of this name; one that nobody opened begins here."""
        return self._open.get(session_id) or self.open(session_id, SessionSpec())

    def so_far(self, session_id: str) -> Trajectory:
        """Of an open session, or of one that ended. Raises ApiError if there is none."""
        session = self._open.get(session_id)
        if session is not None:
            return session.trajectory(StopReason.ABORTED, 0.0)
        return self._ended_trajectory(session_id)

    def end(self, session_id: str, end: SessionEnd) -> Trajectory:
        """End it; of one that has ended, what it ended with. Raises ApiError if there is none."""
        if session_id not in self._open:
            return self._ended_trajectory(session_id)
        return self._end(session_id, end.stop_reason, end.reward, end.error)

    async def expire(self) -> None:
        """End sessions that nobody asks anything, until cancelled."""
        idle_s = self._config.session_idle_s
        while True:
            for session_id in [name for name, session in self._open.items() if session.idle_s() >= idle_s]:
                late = f"nobody asked it anything for {idle_s:g} s"
                self._end(session_id, StopReason.WALL_TIME, 0.0, late)
            await asyncio.sleep(min(_LOOK_EVERY_S, idle_s))

    def close(self) -> None:
        """End those that are open, as aborted."""
        for session_id in list(self._open):
            self._end(session_id, StopReason.ABORTED, 0.0, "the endpoint closed")

    def _end(self, session_id: str, reason: StopReason, reward: float, error: str | None) -> Trajectory:
        trajectory = self._open.pop(session_id).end(reason, reward, error)
        self._ended_names.add(session_id)
        self._ended[session_id] = trajectory
        if len(self._ended) > self._config.max_sessions:
            del self._ended[next(iter(self._ended))]
        self._on_ended(trajectory)
        return trajectory

    def _ended_trajectory(self, session_id: str) -> Trajectory:
        trajectory = self._ended.get(session_id)
        if trajectory is None:
            if session_id in self._ended_names:
                raise ApiError(404, f"session {session_id} ended long ago", code="session_forgotten")
            raise ApiError(404, f"there is no session {session_id}", code="no_session")
        return trajectory

    def _refuse_ended(self, session_id: str) -> None:
        if session_id in self._ended_names:
            raise ApiError(409, f"session {session_id} has ended; take another name", code="session_ended")
