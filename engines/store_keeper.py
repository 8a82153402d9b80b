"""Keeps a store directory within its capacity for the scheduler of a job.

It knows when to look (after announcements, and now and then at what other jobs wrote) and has others do the
rest: kvstore.store_owner holds the lease and unlinks, kvstore.prefix_index says which segments go. The index
belongs to the event loop; the directory is listed, and files are unlinked, in threads.

What is written to stays: the newest segment of each of the job's own writers, and of another job's writer the
newest if it grew between the last two looks. One that is evicted all the same costs its writer that one file
(kvstore.segment_writers).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from kvstore.keys import WeightsId
from kvstore.layout import BlockLayout
from kvstore.prefix_index import PrefixIndex
from kvstore.store_owner import StoreOwner

logger = logging.getLogger(__name__)
_UNLINK_DEADLINE_S = 10.0
_STEPS = 100
"""An eviction makes room for this part of the limit at least."""


class StoreKeeper:
    """One per job. Its methods run on the scheduler's event loop."""

    def __init__(self, owner: StoreOwner, *, refresh_s: float) -> None:
        self.index = PrefixIndex()
        self.evicted_bytes = 0
        """Bytes of the files unlinked so far."""
        self._owner = owner
        self._refresh_s = refresh_s
        self._newest: dict[str, str] = {}
        """By writer and weights, the segment it wrote to last: pinned, as it writes to it still."""
        self._going: set[str] = set()
        """Segments forgotten already whose files are being unlinked."""
        self._went: set[str] = set()
        """Those, and all that were forgotten since the directory was last listed."""
        self._seen: Mapping[str, int] | None = None
        """Bytes of every segment at the last look."""
        self._growing: set[str] = set()
        """Segments of other jobs that are written to, as it seems: pinned."""
        self._looking = asyncio.Lock()
        self._look: asyncio.Task[None] | None = None
        """The first look with a lease that was won while the job ran."""
        self._current: WeightsId | None = None
        self._unlinks: set[asyncio.Task[None]] = set()
        self._refreshes: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def owns(self) -> bool:
        """Does this job evict, as of the lease's last heartbeat?"""
        return self._owner.holds_lease

    async def open(self, layout: BlockLayout, weights_id: WeightsId) -> None:
        """Find what is stored, and begin to look after it; before anything is placed."""
        await asyncio.to_thread(self._owner.recover, self.index, layout, weights_id)
        await self.refresh()
        self.make_room((), weights_id)
        self._refreshes = asyncio.create_task(self._refresh_now_and_then())

    def make_room(self, written: Collection[str], current: WeightsId) -> None:
        """Evict if there is too much; `written` are segments that blocks were just announced in.

        `current` are the weights in use.
        """
        self._current = current
        self._pin_newest(written, current)
        if self._closed:
            return
        if self._owner.must_look:  # in a thread; what is too much is known after that
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._look_and_make_room())
            return
        excess_bytes = self._owner.excess_bytes(self.index)
        if excess_bytes <= 0:
            return
        # A little more than is needed: choosing costs a look at every block.
        names = self.index.victims(excess_bytes + self._owner.limit_bytes // _STEPS, current)
        for name in names:
            self.index.forget_segment(name)
        self._going.update(names)
        self._went.update(names)
        if names:
            unlink = asyncio.create_task(self._unlink(names))
            self._unlinks.add(unlink)
            unlink.add_done_callback(self._unlinks.discard)

    async def refresh(self) -> bool:
        """See what other jobs wrote into the directory, or took from it; False if it cannot be listed."""
        async with self._looking:
            self._went = set(self._going)
            try:
                survey = await asyncio.to_thread(self._owner.survey, self.index.segment_names())
            except OSError as error:
                logger.warning("the KV store cannot be listed, its size is not known: %s", error)
                return False
            sizes = {name: nbytes for name, nbytes in survey.sizes.items() if name not in self._went}
            self._pin_growing(sizes)
            self._owner.refresh(self.index, replace(survey, sizes=sizes))
            return True

    async def unlinked(self) -> None:
        """Return when the files of all that was evicted are gone."""
        if self._unlinks:
            await asyncio.wait(self._unlinks, timeout=_UNLINK_DEADLINE_S)

    async def close(self) -> None:
        """Finish unlinking and let another job have the directory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in (self._refreshes, self._look):
            if task is not None:
                task.cancel()
        await self.unlinked()
        await asyncio.to_thread(self._owner.close)

    def _pin_newest(self, written: Collection[str], current: WeightsId) -> None:
        """What a writer appends to an unlinked file is lost, so its newest segment stays."""
        for name in written:
            writer, sequence = _writer_and_sequence(name)
            before = self._newest.get(writer)
            if before is None or _writer_and_sequence(before)[1] < sequence:
                self.index.pin([name])
                self.index.unpin([before] if before else ())
                self._newest[writer] = name
        for writer, name in list(self._newest.items()):
            if not name.startswith(f"{current}."):
                self.index.unpin([name])
                del self._newest[writer]

    def _pin_growing(self, sizes: Mapping[str, int]) -> None:
        """Which segments do others write to? At the first look nobody knows."""
        newest: dict[str, str] = {}
        for name in sizes:
            writer, sequence = _writer_and_sequence(name)
            if writer not in newest or _writer_and_sequence(newest[writer])[1] < sequence:
                newest[writer] = name
        seen, self._seen = self._seen, sizes
        growing = set[str]()
        if seen is not None:
            others = (name for writer, name in newest.items() if writer not in self._newest)
            growing = {name for name in others if sizes[name] > seen.get(name, 0)}
        self.index.pin(growing - self._growing)
        self.index.unpin(self._growing - growing)
        self._growing = growing

    async def _look_and_make_room(self) -> None:
        if await self.refresh() and self._current is not None:
            self.make_room((), self._current)

    async def _unlink(self, names: Sequence[str]) -> None:
        self.evicted_bytes += await asyncio.to_thread(self._owner.unlink, names)
        self._going.difference_update(names)

    async def _refresh_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()
            if self._current is not None:
                self.make_room((), self._current)


def _writer_and_sequence(segment: str) -> tuple[str, int]:
    """<weights id>.<writer id>.<sequence>.kv: who writes it, and which of its segments it is."""
    writer, _, sequence = segment.removesuffix(".kv").rpartition(".")
    return writer, int(sequence)
