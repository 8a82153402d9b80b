"""What a person sees while a run goes on: bars on a terminal, now and then a plain line elsewhere.

Two things happen: a phase begins, and a rollout step moves on. On a terminal both show in a live
display; in a file or a CI log a phase is a line at once and a step's state a line every few seconds.
It does not know where the numbers come from. A reader that goes away ends the output, not the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from rollout.glance import AgentNow

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

PLAIN_LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class StepState:
    """A rollout step on its way."""

    step: int
    """From 0."""
    num_steps: int
    num_trajectories: int
    num_done: int
    num_running: int
    num_turns: int
    """Turns finished, over all trajectories, those that run too."""
    num_turns_expected: int | None = None
    """In the end; None: nobody knows."""
    num_done_before: int = 0
    num_turns_before: int = 0
    """Of both, what a resumed run was given."""
    slowest: AgentNow | None = None
    """The trajectory that has been running longest."""
    ailing: tuple[str, ...] = ()
    """Parts of the cluster that are not healthy, and how they are."""

    @property
    def title(self) -> str:
        return f"rollout {self.step + 1}/{self.num_steps}"

    @property
    def counts(self) -> str:
        done = f"{self.num_done}/{self.num_trajectories} done"
        turns = f"{self.num_turns}" + (f"/{self.num_turns_expected}" if self.num_turns_expected else "")
        ailing = "".join(f", {part}" for part in self.ailing)
        return f"{done}, {self.num_running} running, {turns} turns{ailing}"

    @property
    def words_slowest(self) -> str:
        """Who holds the step up, and in what."""
        slowest = self.slowest
        if slowest is None:
            return ""
        return f"{slowest.trajectory_id} in {slowest.phase} after {_duration(slowest.running_s)}"

    def words_left(self, left_s: float | None) -> str:
        """The time left, to follow the counts; nothing where it is not known or all are done."""
        if left_s is None or self.num_done == self.num_trajectories:
            return ""
        return f", about {_duration(left_s)} left"

    def left_s(self, elapsed_s: float) -> float | None:
        """Seconds left if it goes on as fast as in the `elapsed_s` so far; None if nothing has ended yet.

        By turns where it is known how many there will be, by trajectories else.
        """
        ended, left = self.num_done - self.num_done_before, self.num_trajectories - self.num_done
        if self.num_turns_expected is not None:
            ended = self.num_turns - self.num_turns_before
            left = max(0, self.num_turns_expected - self.num_turns)
        return elapsed_s / ended * left if ended > 0 else None


class Display(Protocol):
    """How progress is shown. All seconds count from when the run began."""

    def phase(self, text: str, at_s: float) -> None:
        """Show that something new has begun."""

    def step(self, state: StepState, at_s: float, left_s: float | None) -> None:
        """Show a rollout step's state, and how long it may still take."""

    def close(self, at_s: float) -> None:
        """Leave the stream ready for others."""


class Progress:
    """One run's progress. Use `Progress.open`, in a `with`."""

    def __init__(self, display: Display | None, clock: Callable[[], float]) -> None:
        self._display = display
        self._clock = clock
        self._opened_s = clock()
        self._step: int | None = None
        self._step_began_s = 0.0

    @classmethod
    def open(
        cls, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> Progress:
        """Bars where `stream` is a terminal that can draw them, lines where not, nothing if quiet."""
        if quiet:
            return cls(None, clock)
        if stream.isatty() and os.environ.get("TERM") != "dumb":
            return cls(BarDisplay(stream, clock), clock)
        return cls(LineDisplay(stream), clock)

    def phase(self, text: str) -> None:
        """Something new begins, such as `starting Ray` or `training on step 1`."""
        self._step = None
        self._show(lambda display, at_s: display.phase(text, at_s))

    def step(self, state: StepState) -> None:
        """A rollout step is at `state`; its first call begins it. Cheap: call it at every turn."""
        if state.step != self._step:
            self._step, self._step_began_s = state.step, self._now_s()
        left_s = state.left_s(self._now_s() - self._step_began_s)
        self._show(lambda display, at_s: display.step(state, at_s, left_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show(lambda display, at_s: display.close(at_s))
        self._display = None

    def _now_s(self) -> float:
        return self._clock() - self._opened_s

    def _show(self, act: Callable[[Display, float], None]) -> None:
        if self._display is None:
            return
        try:
            act(self._display, self._now_s())
        except (OSError, ValueError):  # the reader is gone, or the stream was closed
            self._display = None


class LineDisplay:
    """Plain lines, at most one in PLAIN_LINE_EVERY_S but for beginnings and ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._step: int | None = None
        self._next_line_s = 0.0

    def phase(self, text: str, at_s: float) -> None:
        self._step = None
        self._print(text, at_s)

    def step(self, state: StepState, at_s: float, left_s: float | None) -> None:
        begins, ends = state.step != self._step, state.num_done == state.num_trajectories
        if not begins and not ends and at_s < self._next_line_s:
            return
        self._step = state.step
        self._next_line_s = at_s + PLAIN_LINE_EVERY_S
        slowest = f", slowest {state.words_slowest}" if state.slowest else ""
        self._print(f"{state.title}: {state.counts}{state.words_left(left_s)}{slowest}", at_s)

    def close(self, at_s: float) -> None:
        """Nothing to undo."""

    def _print(self, text: str, at_s: float) -> None:
        self._stream.write(f"[{at_s:7.1f} s] {text}\n")
        self._stream.flush()


class BarDisplay:
    """A live bar for what goes on now, with a rollout's slowest below; what is over stays above it."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(file=stream, highlight=False)
        self._bars = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[counts]}", markup=False),
            console=self._console,
            get_time=clock,
        )
        self._slowest = ""
        self._task: TaskID | None = None
        self._began: tuple[str, float] = ("", 0.0)
        self._step: int | None = None
        self._live = Live(console=self._console, get_renderable=self._renderable, transient=True)
        self._live.start()

    def phase(self, text: str, at_s: float) -> None:
        self._begin(text, at_s)
        self._step = None

    def step(self, state: StepState, at_s: float, left_s: float | None) -> None:
        begins = state.step != self._step
        if begins:
            self._begin(state.title, at_s)
            self._step = state.step
        assert self._task is not None
        self._bars.update(
            self._task,
            completed=state.num_done,
            total=state.num_trajectories,
            counts=state.counts + state.words_left(left_s),
        )
        self._slowest = state.words_slowest
        if begins:
            self._live.refresh()

    def close(self, at_s: float) -> None:
        self._end(at_s)
        self._live.stop()

    def _renderable(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        if not self._slowest:
            return self._bars
        line = Text(f"          slowest: {self._slowest}", "dim", no_wrap=True, overflow="ellipsis")
        return Group(self._bars, line)

    def _begin(self, title: str, at_s: float) -> None:
        self._end(at_s)
        self._began = (title, at_s)
        self._task = self._bars.add_task(title, total=None, counts="")

    def _end(self, at_s: float) -> None:
        """Take the bar away and leave a line with how long it took."""
        if self._task is None:
            return
        title, began_s = self._began
        self._bars.remove_task(self._task)
        self._task, self._slowest = None, ""
        self._console.print(f"  {at_s - began_s:7.1f} s  {title}", markup=False)


def _duration(seconds: float) -> str:
    """As people say it: `7 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
