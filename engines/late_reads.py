"""Watches reads that did not end in time, until they touch their slots no more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from engines.errors import EngineFailed
from engines.types import NodeId, SlotId

_DEADLINE_S = 600.0
"""A late read that has not ended by then keeps its slot for as long as the node lives."""
_LOOK_S = 0.5


class LateReads:
    """One per node, on its event loop. `tell` is told of slots that nobody writes to any more."""

    def __init__(self, node_id: NodeId, tell: Callable[[list[SlotId]], Awaitable[None]]) -> None:
        self._node_id = node_id
        self._tell = tell
        self._closed = threading.Event()
        self._telling: set[asyncio.Task[None]] = set()
        self._late: set[SlotId] = set()

    def __contains__(self, slot: SlotId) -> bool:
        """Whether a late read may still write into the slot."""
        return slot in self._late

    def __len__(self) -> int:
        """Slots that late reads may still write into."""
        return len(self._late)

    def watch(self, late: Mapping[SlotId, threading.Event]) -> None:
        """`late`: what is set when the read into the slot has ended."""
        loop = asyncio.get_running_loop()
        self._late.update(late)

        def watch() -> None:
            waiting, end_s = dict(late), time.monotonic() + _DEADLINE_S
            while waiting and time.monotonic() < end_s and not self._closed.is_set():
                next(iter(waiting.values())).wait(_LOOK_S)
                settled = [slot for slot, event in waiting.items() if event.is_set()]
                for slot in settled:
                    del waiting[slot]
                if settled:
                    with suppress(RuntimeError):  # the event loop is closed: nobody is there to be told
                        loop.call_soon_threadsafe(self._settled, settled)

        # A daemon, as a read that never ends must not hold up the end of the process.
        threading.Thread(target=watch, name=f"{self._node_id}-late", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _settled(self, slots: list[SlotId]) -> None:
        self._late.difference_update(slots)

        async def tell() -> None:
            with suppress(EngineFailed):  # the scheduler is gone: others will say so
                await self._tell(slots)

        task = asyncio.ensure_future(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
