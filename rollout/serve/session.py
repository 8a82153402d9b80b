"""A session: the trajectory of an agent that runs elsewhere and talks to the endpoint.

Each request that is answered is a turn. One that goes on from what a segment has heard and said continues
that segment, whose ids stay as they are; any other opens a new segment. A request that fails, or whose
client goes away, leaves no trace. Requests may overlap: a segment with a request under way is not continued
by another.

Time in which no request is under way is the agent's own, and counts as `tool`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace

from engines.context import Context
from engines.types import PhaseSeconds, RequestId
from rollout.agent_run import fill
from rollout.limits import expire_on
from rollout.serve.asked import Asked
from rollout.serve.errors import ApiError
from rollout.serve.served_model import OnText, Reply, ServedModel
from rollout.serve.told import Told
from rollout.types import Segment, StopReason, Trajectory, Turn


@dataclass(slots=True, eq=False)
class _Branch:
    """A segment in the making: what it has heard and said, as ids and as the client knows it."""

    context: Context
    heard: Told
    ended: bool
    """Whether its last token closes the model's turn."""
    segment: int
    last_turn: int
    busy: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a request goes on."""

    branch: _Branch | None
    """None: nowhere; it opens a segment."""
    context: Context
    given: array[int]
    """Ids that the segment gains ahead of the answer."""


class Session:
    """All methods belong to one event loop."""

    def __init__(
        self,
        session_id: str,
        model: ServedModel,
        *,
        task_id: str,
        group_id: str,
        sample_index: int,
        clock: Callable[[], float],
    ) -> None:
        self.session_id = session_id
        self._model = model
        self._task_id, self._group_id, self._sample_index = task_id, group_id, sample_index
        self._clock = clock
        self._started_s = self._idle_since_s = clock()
        self._branches: list[_Branch] = []
        self._segments: list[Segment] = []
        self._turns: list[Turn] = []
        self._num_requests = self._num_running = 0
        self._abort = asyncio.Event()

    def idle_s(self) -> float:
        """Since when nobody asks it anything."""
        return 0.0 if self._num_running else self._clock() - self._idle_since_s

    async def reply(self, asked: Asked, on_text: OnText | None = None) -> Reply:
        """Take a turn. Raises ApiError, also when the session ends meanwhile."""
        self._begin()
        place: _Place | None = None
        try:
            arrived_s = self._clock()
            place = self._place(asked)
            self._num_requests += 1
            request_id = RequestId(f"session/{self.session_id}/{self._num_requests}")
            async with asyncio.timeout(None) as wall, expire_on(self._abort, wall):
                reply = await self._model.reply(place.context, asked, request_id, on_text)
            if self._abort.is_set():
                raise TimeoutError
            self._record(place, reply, arrived_s)
            return reply
        except TimeoutError:
            raise ApiError(409, f"session {self.session_id} has ended", code="session_ended") from None
        finally:
            if place is not None and place.branch is not None:
                place.branch.busy = False
            self._num_running -= 1
            self._idle_since_s = self._clock()

    def end(self, reason: StopReason, reward: float, error: str | None = None) -> Trajectory:
        """It stops here; requests under way fail."""
        self._charge_idle()
        self._abort.set()
        return self.trajectory(reason, reward, error)

    def trajectory(self, reason: StopReason, reward: float, error: str | None = None) -> Trajectory:
        """What there is of it so far, on the clock of the endpoint."""
        duration_s = self._clock() - self._started_s
        spent = sum((turn.phases for turn in self._turns), start=PhaseSeconds())
        return Trajectory(
            task_id=self._task_id,
            group_id=self._group_id,
            sample_index=self._sample_index,
            segments=tuple(self._segments),
            turns=tuple(self._turns),
            reward=reward,
            stop_reason=reason,
            started_s=self._started_s,
            duration_s=duration_s,
            phases=fill(spent, duration_s),
            error=error,
        )

    def _begin(self) -> None:
        if self._abort.is_set():
            raise ApiError(409, f"session {self.session_id} has ended", code="session_ended")
        self._charge_idle()
        self._num_running += 1

    def _charge_idle(self) -> None:
        """The agent's own time, since the last answer, belongs to the turn before it."""
        if self._turns and not self._num_running:
            idle_s = self._clock() - self._idle_since_s
            last = self._turns[-1]
            phases = last.phases + PhaseSeconds(tool=idle_s)
            self._turns[-1] = replace(last, tool_s=last.tool_s + idle_s, phases=phases)
            self._idle_since_s += idle_s

    def _place(self, asked: Asked) -> _Place:
        """On the longest segment that the request goes on from."""
        for branch in sorted(self._branches, key=lambda branch: len(branch.context), reverse=True):
            given = None if branch.busy else self._model.more(asked.told, branch.heard, ended=branch.ended)
            if given is not None:
                branch.busy = True
                return _Place(branch, branch.context.extended(given), given)
        context = self._model.context(asked.told)
        return _Place(None, context, context.token_ids[:])

    def _record(self, place: _Place, reply: Reply, arrived_s: float) -> None:
        result, branch = reply.result, place.branch
        heard = reply.asked.told.answered(reply.said)
        ended = self._model.speech.ended(result.token_ids)
        if branch is None:
            branch = _Branch(place.context, heard, ended, len(self._segments), len(self._turns))
            self._branches.append(branch)
            self._segments.append(Segment())
        else:
            before = self._turns[branch.last_turn]
            self._turns[branch.last_turn] = replace(before, tool_tokens=len(place.given))
            branch.context, branch.heard, branch.ended = place.context, heard, ended
            branch.last_turn = len(self._turns)
        self._turns.append(
            Turn(
                segment=branch.segment,
                prompt_tokens=result.prompt_tokens,
                hit_tokens=result.hit_tokens,
                output_tokens=len(result.token_ids),
                tool_tokens=0,
                finish_reason=result.finish_reason,
                weights_version=result.weights_version,
                started_s=arrived_s - self._started_s,
                ttft_s=result.ttft_s,
                ttst_s=result.ttst_s,
                tpot_s=result.tpot_s,
                tool_s=0.0,
                phases=fill(result.phases, self._clock() - arrived_s),
                recomputed_tokens=result.recomputed_tokens,
                num_attempts=result.num_attempts,
            )
        )
        segment = self._segments[branch.segment]
        segment.append_given(place.given)
        segment.append_sampled(result.token_ids, result.logprobs, result.weights_version)
        branch.context.append(result.token_ids)
