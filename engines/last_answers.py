"""Asks all parts of a cluster for a figure, and goes by what one said last where it does not answer.

A part that is dead or silent must not hold up who counts. It is asked again only when its last question is
answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from engines.errors import EngineFailed

_PATIENCE_S = 5.0


class LastAnswers:
    """One per cluster."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._last: dict[tuple[str, str], Any] = {}

    async def ask(self, parts: Mapping[Any, Any], question: str) -> dict[Any, Any]:
        """What each part answers to the method `question`, by its id; one that never answered is left out."""
        await asyncio.gather(*(self._ask(name, part, question) for name, part in parts.items()))
        return {name: self._last[name, question] for name in parts if (name, question) in self._last}

    async def _ask(self, name: str, part: Any, question: str) -> None:
        asked = self._asked.get((name, question))
        if asked is None:
            asked = self._asked[name, question] = asyncio.ensure_future(getattr(part, question)())
            await asyncio.wait([asked], timeout=_PATIENCE_S)
        if not asked.done() or self._asked.get((name, question)) is not asked:
            return
        del self._asked[name, question]
        with suppress(EngineFailed):
            self._last[name, question] = asked.result()
