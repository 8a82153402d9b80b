"""`gc`: drops whole segments of a store, as the holder of its lease.

What goes is decided by kvstore.tools.gc_choice and kvstore.tools.orphans. A file is removed only while the
lease is held, which is looked at again before each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kvstore.errors import StoreError
from kvstore.files import Files
from kvstore.process_identity import Process
from kvstore.segment_contents import SegmentContents
from kvstore.segment_files import is_segment_name
from kvstore.segment_scan import scan_segments
from kvstore.store_owner import StoreOwner
from kvstore.tools.gc_choice import GcRule, choose_versions
from kvstore.tools.inventory import StoredVersion, take_inventory
from kvstore.tools.lease_view import LeaseView, read_lease
from kvstore.tools.orphans import orphaned_segments
from kvstore.tools.output import make_table, moment, size

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What goes."""

    versions: tuple[StoredVersion, ...]
    orphans: dict[str, int]
    """Bytes of each orphaned segment of the versions that stay, by its name."""
    bad: dict[str, int]
    """Bytes of each segment that cannot be used at all, by its name."""

    @property
    def segments(self) -> dict[str, int]:
        """Bytes of each file by its name, first what is of no use to anybody."""
        together = self.bad | self.orphans
        for version in self.versions:
            together |= version.segments
        return together


@dataclass(frozen=True, slots=True)
class GcOutcome:
    """What a plan came to."""

    path: Path
    plan: GcPlan
    dry_run: bool
    freed_bytes: int
    """0 in a dry run."""

    def answer(self) -> dict[str, Any]:
        """For machines."""
        segments = self.plan.segments
        return {
            "path": str(self.path),
            "dry_run": self.dry_run,
            "versions": [
                {
                    "kv_format": version.layout.format.digest().hex(),
                    "weights_id": version.weights_id,
                    "segments": len(version.segments),
                    "blocks": version.num_blocks,
                    "bytes": version.nbytes,
                }
                for version in self.plan.versions
            ],
            "orphaned_segments": sorted(self.plan.orphans),
            "bad_segments": sorted(self.plan.bad),
            "segments": len(segments),
            "bytes": sum(segments.values()),
            "freed_bytes": self.freed_bytes,
        }

    def report(self) -> list[RenderableType]:
        """For people."""
        segments = self.plan.segments
        if not segments:
            return [Text(f"{self.path}: nothing to drop", style="bold")]
        told = "would free" if self.dry_run else "freed"
        nbytes = sum(segments.values()) if self.dry_run else self.freed_bytes
        headline = Text.assemble(
            (f"{self.path}: {told} {size(nbytes)}", "bold"), f" in {len(segments):,} segments"
        )
        table = make_table("what goes", "segments", "blocks", "bytes", "newest")
        for version in self.plan.versions:
            table.add_row(
                f"weights {version.weights_id}",
                f"{len(version.segments):,}",
                f"{version.num_blocks:,}",
                size(version.nbytes),
                moment(version.newest_s),
            )
        others = {"orphans of other weights": self.plan.orphans, "cannot be used": self.plan.bad}
        for what, names in others.items():
            if names:
                table.add_row(what, f"{len(names):,}", "", size(sum(names.values())), "")
        return [headline, table]


def plan_gc(directory: Path, files: Files, rule: GcRule, *, now_s: float) -> GcPlan:
    """What `rule` drops. Files that are not named like a segment are nobody's here, and stay.

    Raises WrongInput for weights that are not there, StoreError where the directory cannot be listed.
    """
    kept: list[SegmentContents] = []

    def scan() -> Iterator[Any]:
        for found in scan_segments(directory, files):
            if rule.orphans and isinstance(found, SegmentContents):
                kept.append(found)
            yield found

    inventory = take_inventory(scan())
    versions = tuple(choose_versions(inventory, rule, now_s))
    dropped = {name for version in versions for name in version.segments}
    staying = {contents.name: contents for contents in kept if contents.name not in dropped}
    orphaned = {name: staying[name].nbytes for name in orphaned_segments(staying.values())}
    unusable = [segment for segment in inventory.bad_segments if is_segment_name(segment.name)]
    bad = {segment.name: segment.nbytes for segment in unusable} if rule.bad else {}
    return GcPlan(versions, orphaned, bad)


@contextmanager
def owned(directory: Path, files: Files, *, lease_ttl_s: float) -> Iterator[StoreOwner]:
    """The store's owner as long as the block lasts. Raises StoreError where somebody else is.

    A holder on another host is watched for `lease_ttl_s`: is its heartbeat still moving?
    """
    before = read_lease(directory, files)
    if before is not None and before.state == "alive":
        raise _held(before)
    owner = StoreOwner(
        directory,
        capacity_bytes=None,
        reserve_bytes=0,
        lease_ttl_s=lease_ttl_s,
        files=files,
        clock=time.monotonic,
    )
    try:
        _await_lease(owner, lambda: read_lease(directory, files), before, lease_ttl_s)
        yield owner
    finally:
        owner.close()


def run_gc(owner: StoreOwner, directory: Path, plan: GcPlan) -> GcOutcome:
    """Remove what is planned. Raises StoreError where the lease was lost over it or a file would not go."""
    names = list(plan.segments)
    freed = owner.unlink(names)
    left = [name for name in names if (directory / name).exists()]
    if left:
        lost = "another process took the lease over"
        why = f"{left[0]} cannot be removed" if owner.holds_lease else lost
        raise StoreError(f"{directory}: {len(left)} of {len(names)} segments are still there, {why}")
    return GcOutcome(directory, plan, dry_run=False, freed_bytes=freed)


def _await_lease(
    owner: StoreOwner,
    look: Callable[[], LeaseView | None],
    before: LeaseView | None,
    lease_ttl_s: float,
) -> None:
    deadline_s = time.monotonic() + 2 * lease_ttl_s
    while not owner.holds_lease:
        if owner.lease_refused is not None:
            raise StoreError(f"the store's lease cannot be taken, nothing was dropped: {owner.lease_refused}")
        now = look()
        if now is not None and now != before and now.state in ("alive", "unknown") and not _is_ours(now):
            raise _held(now)
        if time.monotonic() >= deadline_s:
            raise StoreError("the store's lease cannot be taken: is the directory writable?")
        time.sleep(POLL_S)


def _is_ours(lease: LeaseView) -> bool:
    return lease.record is not None and lease.record.process == Process.this()


def _held(lease: LeaseView) -> StoreError:
    return StoreError(
        f"the store is in use: {lease.holder()} holds its lease (epoch {lease.epoch}); "
        "end that job first, or let it evict"
    )
