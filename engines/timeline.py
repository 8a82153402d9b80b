"""What an engine or a node did when, for a picture of a run: spans on named lanes.

A process records the turns that are sampled, and every engine samples the same ones, so that a turn can be
followed from lane to lane. It is off unless asked for, and bounded: the oldest spans go first. Who draws the
picture is rollout.perfetto.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from engines.types import RequestId

_MAX_SPANS = 100_000
Detail = str | int | float


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while, on one lane: an engine, or a direction of a NIC."""

    process: str
    """The engine or node."""
    lane: str
    name: str
    start_s: float
    """Seconds since the epoch."""
    duration_s: float
    details: tuple[tuple[str, Detail], ...]


class Lanes:
    """For things of one kind that go on at the same time, as spans of one lane must not overlap.

    Used from one thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._taken: set[int] = set()

    def take(self) -> str:
        """The first lane that nobody has."""
        number = next(i for i in count() if i not in self._taken)
        self._taken.add(number)
        return f"{self._name} {number}"

    def give_back(self, lane: str) -> None:
        self._taken.remove(int(lane.rpartition(" ")[2]))


class Timeline:
    """One per process. Thread-safe: a deque's append is."""

    def __init__(
        self,
        process: str,
        every: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Every `every`-th turn is sampled; 0: none, and nothing is recorded."""
        self._process = process
        self._every = every
        self._clock = clock
        # One offset for the whole life: the wall clock may be set while a run goes on.
        self._epoch_s = wall_clock() - clock()
        self._spans: deque[Span] = deque(maxlen=_MAX_SPANS)

    def sample(self, every: int) -> None:
        """From now on every `every`-th turn is sampled."""
        self._every = every

    @property
    def is_on(self) -> bool:
        return self._every > 0

    def samples(self, request_id: RequestId) -> bool:
        """Whether this turn is drawn; the same answer in every process, and for every attempt at the turn."""
        if not self._every:
            return False
        turn = request_id.rpartition("#")[0] or request_id
        return zlib.crc32(turn.encode()) % self._every == 0

    def now_s(self) -> float:
        """On the clock that `add` takes."""
        return self._clock()

    def add(self, lane: str, name: str, start_s: float, **details: Detail) -> None:
        """Something began at `start_s` and has ended now."""
        if not self._every:
            return
        end_s = self._clock()
        span = Span(
            self._process, lane, name, self._epoch_s + start_s, end_s - start_s, tuple(details.items())
        )
        self._spans.append(span)

    @contextmanager
    def during(self, lanes: Lanes, name: str, **details: Detail) -> Iterator[None]:
        """Draw what goes on inside, beside others of its kind."""
        if not self._every:
            yield
            return
        lane, start_s = lanes.take(), self._clock()
        try:
            yield
        finally:
            self.add(lane, name, start_s, **details)
            lanes.give_back(lane)

    def spans(self) -> tuple[Span, ...]:
        """What was recorded and is remembered, in the order it ended."""
        return tuple(self._spans)
