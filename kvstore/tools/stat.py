"""`stat`: what is in a store, and who owns it. Reads headers and footers, changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kvstore.block_record import FORMAT_VERSION
from kvstore.files import Files
from kvstore.layout import BlockLayout
from kvstore.segment_contents import BadSegment
from kvstore.segment_scan import scan_segments
from kvstore.tools.inventory import Inventory, StoredVersion, take_inventory
from kvstore.tools.lease_view import LeaseView, read_lease
from kvstore.tools.output import duration, make_table, moment, size


@dataclass(frozen=True, slots=True)
class StoreStat:
    """All that `stat` tells."""

    path: Path
    inventory: Inventory
    lease: LeaseView | None
    free_bytes: int
    """Of the file system, for this user."""
    total_bytes: int

    def answer(self) -> dict[str, Any]:
        """For machines."""
        versions = self.inventory.versions
        return {
            "path": str(self.path),
            "format_version": FORMAT_VERSION,
            "segments": self.inventory.num_segments,
            "blocks": sum(version.num_blocks for version in versions),
            "bytes": self.inventory.nbytes,
            "formats": [
                {**_format_answer(layout), "weights": [_version_answer(version) for version in versions]}
                for layout, versions in self.inventory.formats().items()
            ],
            "bad_segments": _by_reason(self.inventory.bad_segments),
            "lease": None if self.lease is None else self.lease.answer(),
            "free_bytes": self.free_bytes,
            "total_bytes": self.total_bytes,
        }


def stat_store(directory: Path, files: Files) -> StoreStat:
    """Raises OSError where the directory cannot be read; a file that cannot is a bad segment."""
    space = os.statvfs(directory)
    return StoreStat(
        path=directory,
        inventory=take_inventory(scan_segments(directory, files)),
        lease=read_lease(directory, files),
        free_bytes=space.f_bavail * space.f_frsize,
        total_bytes=space.f_blocks * space.f_frsize,
    )


def stat_report(stat: StoreStat) -> list[RenderableType]:
    """For people."""
    inventory = stat.inventory
    parts: list[RenderableType] = [_headline(stat)]
    for layout, versions in inventory.formats().items():
        parts += [Text(), _format_line(layout), _versions_table(versions)]
    if inventory.bad_segments:
        parts += [Text(), _bad_table(_by_reason(inventory.bad_segments))]
    return [*parts, Text(), _lease_line(stat.lease), _space_line(stat)]


def _headline(stat: StoreStat) -> Text:
    inventory = stat.inventory
    if not inventory.num_segments:
        return Text(f"{stat.path}: no segment, the store is empty", style="bold")
    num_blocks = sum(version.num_blocks for version in inventory.versions)
    told = f"{num_blocks:,} blocks in {inventory.num_segments:,} segments, {size(inventory.nbytes)}"
    return Text.assemble((f"{stat.path}", "bold"), f": {told}")


def _format_line(layout: BlockLayout) -> Text:
    kv_format = layout.format
    groups = ", ".join(f"{group.name} {group.bytes_per_token} B" for group in kv_format.groups)
    shard = f", shard {kv_format.shard_index} of {kv_format.shard_count}" * (kv_format.shard_count > 1)
    return Text.assemble(
        (f"KV format {kv_format.digest().hex()[:12]}", "bold"),
        f"  {kv_format.dtype}, {kv_format.num_layers} layers, a token's {groups}{shard}; "
        f"{layout.block_tokens} tokens and {size(layout.full_block_bytes)} a block",
    )


def _versions_table(versions: Sequence[StoredVersion]) -> Table:
    table = make_table("weights id", "sealed", "unsealed", "blocks", "bytes", "oldest", "newest")
    for version in versions:
        table.add_row(
            version.weights_id,
            f"{version.num_sealed:,}",
            f"{version.num_unsealed:,}",
            f"{version.num_blocks:,}",
            size(version.nbytes),
            moment(version.oldest_s),
            moment(version.newest_s),
        )
    return table


def _bad_table(by_reason: dict[str, dict[str, int]]) -> Table:
    table = make_table("unusable segments", "files", "bytes")
    for reason, counts in by_reason.items():
        table.add_row(Text(reason, style="red"), f"{counts['segments']:,}", size(counts["bytes"]))
    return table


def _lease_line(lease: LeaseView | None) -> Text:
    if lease is None:
        return Text("lease: nobody ever took it")
    ago = duration(max(0.0, time.time() - lease.moved_s))
    told = {
        "alive": f"held by {lease.holder()}",
        "unknown": f"held by {lease.holder()}",
        "dead": f"left behind by {lease.holder()}, which is gone",
        "released": "free",
    }[lease.state]
    return Text(f"lease: {told}; epoch {lease.epoch}, its heartbeat moved {ago} ago")


def _space_line(stat: StoreStat) -> Text:
    return Text(f"file system: {size(stat.free_bytes)} free of {size(stat.total_bytes)}")


def _by_reason(bad: Sequence[BadSegment]) -> dict[str, dict[str, int]]:
    reasons: dict[str, dict[str, int]] = {}
    for segment in bad:
        counts = reasons.setdefault(segment.reason, {"segments": 0, "bytes": 0})
        counts["segments"] += 1
        counts["bytes"] += segment.nbytes
    return reasons


def _format_answer(layout: BlockLayout) -> dict[str, Any]:
    kv_format = layout.format
    return {
        "kv_format": kv_format.digest().hex(),
        "dtype": kv_format.dtype,
        "num_layers": kv_format.num_layers,
        "groups": [asdict(group) for group in kv_format.groups],
        "shard": [kv_format.shard_index, kv_format.shard_count],
        "block_tokens": layout.block_tokens,
        "block_bytes": layout.full_block_bytes,
    }


def _version_answer(version: StoredVersion) -> dict[str, Any]:
    return {
        "weights_id": version.weights_id,
        "segments": {"sealed": version.num_sealed, "unsealed": version.num_unsealed},
        "blocks": version.num_blocks,
        "bytes": version.nbytes,
        "oldest_s": version.oldest_s,
        "newest_s": version.newest_s,
    }
