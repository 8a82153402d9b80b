"""One process's part in owning a store directory: its lease, its limit, what is in it, what leaves it.

Decides how many bytes are too many. Which segments go is the index's decision (kvstore.eviction), when is
the caller's. Only the holder of the directory's lease evicts; any other process reads and appends, keeps
trying for the lease in the background, and evicts once it has it.

A directory that cannot be written or is full costs the lease and a warning, never the job.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvstore.errors import StoreError
from kvstore.files import Files
from kvstore.keys import WeightsId
from kvstore.layout import BlockLayout
from kvstore.lease import DirectoryLease
from kvstore.prefix_index import PrefixIndex
from kvstore.segment_contents import BadSegment
from kvstore.segment_files import is_segment_name
from kvstore.segment_scan import scan_segments
from kvstore.ssd_store import SEGMENT_BYTES

logger = logging.getLogger(__name__)

CONFIRM_S = 0.05
"""For so long what a look at the lease said is taken to hold, while segments are removed."""

SHARE_OF_FREE = 0.8
"""Of the bytes that are free or the store's own at opening; its limit where the user sets none."""


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What was in a store directory at opening."""

    num_segments: int = 0
    """Segments whose blocks can be hits now."""
    num_blocks: int = 0
    """Blocks in the index that were not there before."""
    num_other_segments: int = 0
    """Segments of other weights, or in another format."""
    bad_segments: Mapping[str, int] = field(default_factory=dict)
    """Files that cannot be used, counted by reason."""


@dataclass(frozen=True, slots=True)
class DirectorySurvey:
    """Which segments a directory held at one look."""

    sizes: Mapping[str, int]
    """Bytes of each."""
    vanished: tuple[str, ...]
    """Those that were expected and are not there."""


class StoreOwner:
    """The lease and the accounting of one process for `directory`. The index is the caller's."""

    def __init__(
        self,
        directory: Path,
        *,
        capacity_bytes: int | None,
        reserve_bytes: int,
        lease_ttl_s: float,
        files: Files,
        clock: Callable[[], float] = time.monotonic,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Take the lease, or begin to wait for it.

        `capacity_bytes`: all segments together; None: a share of what the file system has free. Evicting
        begins `reserve_bytes` before it. `segment_bytes`: what writers fill a segment with. `clock`:
        monotonic seconds. Raises StoreError where the capacity has no room for one segment.
        """
        least = segment_bytes + reserve_bytes
        if capacity_bytes is not None and capacity_bytes < least:
            raise StoreError(
                f"kvstore.capacity_bytes is {capacity_bytes}: it must be at least {least}, "
                f"one segment of {segment_bytes} bytes and the reserve of {reserve_bytes}"
            )
        self._directory = directory
        self._files = files
        self._clock = clock
        self._limit_bytes = -reserve_bytes
        self._warned = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._limit_bytes += self._default_capacity() if capacity_bytes is None else capacity_bytes
        except OSError as error:
            self._warn("opening it", error)
        self._lease = DirectoryLease(directory, ttl_s=lease_ttl_s, files=files, clock=clock)
        self._refreshed_epoch: int | None = None
        self._lease.start()

    @property
    def holds_lease(self) -> bool:
        """As of the last heartbeat. No I/O."""
        return self._lease.held

    @property
    def lease_refused(self) -> str | None:
        """What the directory answered to the last try to take or keep the lease; None: all was well."""
        return self._lease.refused

    @property
    def limit_bytes(self) -> int:
        """Segments may hold this much before any goes: the capacity less the reserve."""
        return max(0, self._limit_bytes)

    def recover(self, index: PrefixIndex, layout: BlockLayout, weights_id: WeightsId) -> RecoveryReport:
        """Bring what the directory holds into `index`: blocks of `weights_id` in `layout`, and all sizes.

        Reads every segment's list of records. Raises nothing for the directory's sake: what cannot be read
        is not found.
        """
        indexed = others = 0
        blocks_before = len(index)
        bad: Counter[str] = Counter()
        try:
            for found in scan_segments(self._directory, self._files):
                if isinstance(found, BadSegment):
                    bad[found.reason] += 1
                    if is_segment_name(found.name):
                        index.note_segment(found.name, _weights_of(found.name), found.nbytes, 0.0)
                elif (found.weights_id, found.layout) == (weights_id, layout):
                    indexed += 1
                    index.add_segment(found)
                else:
                    others += 1
                    index.note_segment(found.name, found.weights_id, found.nbytes, found.created_s)
        except (OSError, StoreError) as error:
            self._warn("recovering its blocks", error)
        report = RecoveryReport(indexed, len(index) - blocks_before, others, dict(bad))
        if bad:
            logger.warning("KV store %s: files that cannot be used, by reason: %s", self._directory, report)
        return report

    @property
    def must_look(self) -> bool:
        """Was the lease won since the directory was last looked at? Then excess_bytes() will list it."""
        return self._lease.held and self._refreshed_epoch != self._lease.epoch

    def excess_bytes(self, index: PrefixIndex) -> int:
        """Bytes to evict now; 0 without the lease. Looks at the directory first where the lease is new."""
        if not self._lease.held:
            return 0
        if self.must_look:
            self.refresh(index)
        return max(0, index.stored_bytes - self.limit_bytes)

    def survey(self, expected: Iterable[str]) -> DirectorySurvey:
        """What the directory holds, and which segments of `expected` are gone. Any thread; raises OSError."""
        sizes = {}
        for name in self._files.list(self._directory):
            if is_segment_name(name):
                size = self._size(name)
                if size is not None:
                    sizes[name] = size
        vanished = []
        for name in expected:
            if name not in sizes:
                # A file that another host made just now may be missing from a cached listing.
                size = self._size(name)
                if size is None:
                    vanished.append(name)
                else:
                    sizes[name] = size
        return DirectorySurvey(sizes, tuple(vanished))

    def refresh(self, index: PrefixIndex, survey: DirectorySurvey | None = None) -> None:
        """Note what other processes appended or evicted, for the accounting; blocks are not read.

        Makes the survey itself unless it is given one.
        """
        epoch = self._lease.epoch
        try:
            survey = survey or self.survey(index.segment_names())
        except OSError as error:
            self._warn("listing it", error)
            return
        for name, nbytes in survey.sizes.items():
            index.note_segment(name, _weights_of(name), nbytes, math.inf)
        for name in survey.vanished:
            index.forget_segment(name)
        self._refreshed_epoch = epoch

    def unlink(self, names: Iterable[str]) -> int:
        """Remove these segments, as long as the lease is held; return the bytes this freed.

        The lease is confirmed first and again as soon as a moment has passed: a process that was stopped and
        superseded removes nothing. Not before each: that lists the directory, which may be large.
        """
        freed, confirmed_s = 0, -math.inf
        for name in names:
            if self._clock() - confirmed_s >= CONFIRM_S:
                if not self._lease.confirm():
                    break
                confirmed_s = self._clock()
            freed += self._remove(name)
        return freed

    def close(self) -> None:
        """Give the lease back. Idempotent."""
        self._lease.close()

    def _remove(self, name: str) -> int:
        assert is_segment_name(name), name
        path = self._directory / name
        try:
            nbytes = self._files.size(path)
            self._files.unlink(path)
        except FileNotFoundError:
            return 0
        except OSError as error:
            self._warn(f"removing {name}", error)
            return 0
        return nbytes

    def _default_capacity(self) -> int:
        held = sum(self.survey(()).sizes.values())
        return int(SHARE_OF_FREE * (shutil.disk_usage(self._directory).free + held))

    def _size(self, name: str) -> int | None:
        """Bytes of segment `name`; None if it is not there."""
        try:
            return self._files.size(self._directory / name)
        except FileNotFoundError:
            return None

    def _warn(self, doing: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("KV store %s: %s failed, the job goes on: %s", self._directory, doing, error)


def _weights_of(name: str) -> WeightsId:
    """A segment's name begins with its weights id."""
    return WeightsId(name.partition(".")[0])
