"""Draws a decode engine's steps: one span for as long as the same sampled turns decode together.

A span a step would be thousands a second. Used on the engine loop alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.timeline import Timeline
from engines.types import RequestId


class DecodeTrace:
    """The `decode` lane of one engine."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._turns: tuple[RequestId, ...] = ()
        self._since_s = 0.0
        self._steps = self._rows = 0

    def follow(self, turns: Sequence[RequestId]) -> None:
        """`turns` share the step that begins now."""
        sampled = tuple(turn for turn in turns if self._timeline.samples(turn))
        if sampled != self._turns:
            self._draw()
            self._turns, self._since_s = sampled, self._timeline.now_s()
            self._steps = self._rows = 0
        self._steps += 1
        self._rows += len(turns)

    def end(self, turn: RequestId) -> None:
        """The turn decodes no more; before anybody hears of it."""
        if turn in self._turns:
            self._draw()
            self._turns = ()

    def _draw(self) -> None:
        if self._turns:
            mean_rows = round(self._rows / self._steps, 1)
            name = ", ".join(self._turns)
            self._timeline.add("decode", name, self._since_s, steps=self._steps, mean_rows=mean_rows)
