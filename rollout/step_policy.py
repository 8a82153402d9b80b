"""Who of a step's samples begins, is played again, is dropped, and comes back.

Invariant: every sample comes back exactly once, with one outcome. A batch is never silently short: a group
that cannot have as many usable trajectories as its rules want is named, and the step ends there.

Pure policy: no I/O, no clock. The controller plays the samples and tells it how they ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from engines.types import PhaseSeconds
from rollout.agent_run import Sample, fill
from rollout.batch import UNUSABLE_OUTCOMES, is_usable
from rollout.history import History
from rollout.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class GroupRules:
    """What a group is to have."""

    enough: int
    """With so many usable trajectories a group is complete: what still runs of it is dropped."""
    least: int = 0
    """Fewest usable trajectories a group may end with."""
    max_replacements: int = 0
    """Most times a failed sample is played again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from the end of a trajectory."""

    back: tuple[Trajectory, ...] = ()
    """These come back now."""
    drop: tuple[str, ...] = ()
    """These run and are to be ended; they come back when they have."""
    short: str | None = None
    """Why the step ends here: a group is short."""


class _State(Enum):
    WAITING = auto()
    RUNNING = auto()
    DROPPING = auto()
    BACK = auto()


@dataclass(slots=True)
class _Seat:
    sample: Sample
    state: _State = _State.WAITING


@dataclass(slots=True)
class _Group:
    seats: list[_Seat] = field(default_factory=list)
    num_usable: int = 0
    num_open: int = 0
    """Samples that are not back."""


class StepPolicy:
    """One rollout step."""

    def __init__(self, samples: Sequence[Sample], rules: GroupRules) -> None:
        self._rules = rules
        self._seats = {sample.trajectory_id: _Seat(sample) for sample in samples}
        assert len(self._seats) == len(samples), "two samples have one trajectory id"
        self._groups: dict[str, _Group] = {}
        for seat in self._seats.values():
            group = self._groups.setdefault(seat.sample.group_id, _Group())
            group.seats.append(seat)
            group.num_open += 1
        order = sorted(self._seats.values(), key=lambda seat: seat.sample.start_after_s)
        self._queue = deque(order)
        """Who waits, by arrival; who is played again comes first."""
        self.num_left = len(samples)
        """Samples that are not back yet."""
        self.num_replaced = 0
        """Failed trajectories that were played again and did not come back."""

    def begin(self, now_s: float, room: int | None) -> list[Sample]:
        """Those that begin now, at most `room`; None: all that have arrived."""
        begun: list[Sample] = []
        while self._queue and (room is None or len(begun) < room):
            seat = self._queue[0]
            if seat.state is _State.WAITING and seat.sample.start_after_s > now_s:
                break
            self._queue.popleft()
            if seat.state is _State.WAITING:
                seat.state = _State.RUNNING
                begun.append(seat.sample)
        return begun

    def next_arrival_s(self) -> float | None:
        """When the next of those that wait arrives, on the step's clock; None: nobody waits."""
        return self._queue[0].sample.start_after_s if self._queue else None

    def restore(self, ended: Iterable[tuple[Sample, Trajectory]]) -> Verdict:
        """Take in what had ended before the run was cut off; first of all."""
        verdict = Verdict()
        # What was dropped had been so because the others had ended well.
        for sample, trajectory in sorted(ended, key=lambda pair: not is_usable(pair[1])):
            seat = self._seats[sample.trajectory_id]
            if seat.state is _State.WAITING:
                seat.sample, seat.state = sample, _State.RUNNING
                more = self.ended(sample, trajectory)
                verdict = Verdict(verdict.back + more.back, (), verdict.short or more.short)
        return verdict

    def ended(self, sample: Sample, trajectory: Trajectory) -> Verdict:
        """A trajectory of `sample` has ended. Who is not running is not heard."""
        seat = self._seats[sample.trajectory_id]
        if seat.state not in (_State.RUNNING, _State.DROPPING) or sample.attempt != seat.sample.attempt:
            return Verdict()
        group = self._groups[sample.group_id]
        if self._is_played_again(seat, group, trajectory):
            seat.sample = replace(sample, attempt=sample.attempt + 1, history=None, start_after_s=0.0)
            seat.state = _State.WAITING
            self._queue.appendleft(seat)
            self.num_replaced += 1
            return Verdict()
        return self._give_back(seat, group, trajectory)

    def check(self) -> None:
        """Raise AssertionError unless books agree."""
        assert self.num_left == sum(group.num_open for group in self._groups.values())
        for group in self._groups.values():
            assert group.num_open == sum(seat.state is not _State.BACK for seat in group.seats), group
            waiting = [seat for seat in group.seats if seat.state is _State.WAITING]
            assert all(seat in self._queue for seat in waiting), group

    def _is_played_again(self, seat: _Seat, group: _Group, trajectory: Trajectory) -> bool:
        return (
            trajectory.outcome in UNUSABLE_OUTCOMES
            and seat.state is _State.RUNNING
            and seat.sample.attempt < self._rules.max_replacements
            and not self._is_complete(group)
        )

    def _give_back(self, seat: _Seat, group: _Group, trajectory: Trajectory) -> Verdict:
        self._mark_back(seat, group)
        if is_usable(trajectory):
            group.num_usable += 1
        elif self._is_complete(group) and trajectory.stop_reason is StopReason.ABORTED:
            trajectory = replace(trajectory, stop_reason=StopReason.DROPPED)
        back, drop = [trajectory], list[str]()
        for other in group.seats if self._is_complete(group) else ():
            if other.state is _State.WAITING:
                self._mark_back(other, group)
                back.append(unplayed(other.sample, StopReason.DROPPED))
            elif other.state is _State.RUNNING:
                other.state = _State.DROPPING
                drop.append(other.sample.trajectory_id)
        return Verdict(tuple(back), tuple(drop), self._short(group, trajectory))

    def _mark_back(self, seat: _Seat, group: _Group) -> None:
        seat.state = _State.BACK
        group.num_open -= 1
        self.num_left -= 1

    def _is_complete(self, group: _Group) -> bool:
        return group.num_usable >= self._rules.enough

    def _short(self, group: _Group, last: Trajectory) -> str | None:
        if group.num_usable + group.num_open >= self._rules.least:
            return None
        why = f": {last.error}" if last.error else ""
        return (
            f"group {last.group_id} cannot have {self._rules.least} usable trajectories any more: "
            f"{last.trajectory_id} ended {last.outcome}{why}; "
            "controller.group_policy=wait goes on without it, =replace plays it again"
        )


def unplayed(sample: Sample, reason: StopReason, error: str | None = None) -> Trajectory:
    """The trajectory of a sample that ended without being played on: what it had before, or nothing."""
    history = sample.history or History((), (), 0.0, 0.0)
    spent = sum((turn.phases for turn in history.turns), start=PhaseSeconds())
    return Trajectory(
        task_id=sample.task.task_id,
        group_id=sample.group_id,
        sample_index=sample.sample_index,
        segments=history.segments,
        turns=history.turns,
        reward=0.0,
        stop_reason=reason,
        started_s=history.started_s,
        duration_s=history.elapsed_s,
        phases=fill(spent, history.elapsed_s),
        error=error,
    )
