"""Asks all parts of a cluster for a figure, and goes by what one said last where it does not answer.

A part that is dead or silent must not hold up who counts: it is waited for once, and asked again only when
its last question is answered. Who asks what somebody else has just asked shares the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from engines.errors import EngineFailed

_PATIENCE_S = 5.0
_Question = tuple[str, str]
"""A part and its method."""


class LastAnswers:
    """One per cluster."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._asked: dict[_Question, asyncio.Task[Any]] = {}
        self._silent: set[_Question] = set()
        """Questions that were waited for in vain."""
        self._last: dict[_Question, Any] = {}

    async def ask(self, parts: Mapping[Any, Any], question: str) -> dict[Any, Any]:
        """What each part answers to the method `question`, by its id; one that never answered is left out."""
        await asyncio.gather(*(self._ask(name, part, question) for name, part in parts.items()))
        return {name: self._last[name, question] for name in parts if (name, question) in self._last}

    async def _ask(self, name: str, part: Any, question: str) -> None:
        key = name, question
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.ensure_future(getattr(part, question)())
            asked.add_done_callback(partial(self._answered, key))
        if key not in self._silent:
            await asyncio.wait([asked], timeout=self._patience_s)
        if not asked.done():
            self._silent.add(key)
            return
        self._answered(key, asked)
        with suppress(EngineFailed):
            asked.result()

    def _answered(self, key: _Question, asked: asyncio.Task[Any]) -> None:
        """Keep the answer, whoever waited for it. Idempotent."""
        if self._asked.get(key) is not asked:
            return
        del self._asked[key]
        self._silent.discard(key)
        if not asked.cancelled() and asked.exception() is None:
            self._last[key] = asked.result()
