"""Reads a run back out of the .wandb file that W&B writes offline.

The file is a LevelDB log: a 7-byte header, then blocks of 32 KiB. A record is one fragment, or several
(first, middle.., last) where it spans blocks; each fragment has a 7-byte head of checksum, length and
type, and a block's last few bytes are padding where no head fits.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

WRITE_DEADLINE_S = 20.0
HEADER_BYTES = 7
BLOCK_BYTES = 32 * 1024
FRAGMENT_HEAD = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """What a test wants to know of a run."""

    history: list[dict[str, float]] = field(default_factory=list)
    """Rows as logged, W&B's own fields (`_step` and such) left out."""
    summary: dict[str, object] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    step_axes: dict[str, str] = field(default_factory=dict)
    """Step metric of each glob of series."""
    exit_code: int | None = None


def read_wandb_file(run_dir: Path) -> WandbFile:
    """The one offline run under `run_dir/wandb`, once it is whole.

    W&B's own process writes the file, and may do so shortly after the run was finished here.
    """
    (path,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    give_up_s = time.monotonic() + WRITE_DEADLINE_S
    while (found := _read(path)).exit_code is None:
        assert time.monotonic() < give_up_s, f"{path} has no exit record: {found}"
        time.sleep(0.01)
    return found


def _read(path: Path) -> WandbFile:
    from wandb.proto import wandb_internal_pb2

    found = WandbFile()
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        match record.WhichOneof("record_type"):
            case "history":
                found.history.append(_own(_items(record.history.item)))
            case "summary":
                found.summary.update(_items(record.summary.update))
            case "run":
                found.config.update(_own(_items(record.run.config.update)))
            case "metric":
                found.step_axes[record.metric.glob_name] = record.metric.step_metric
            case "exit":
                found.exit_code = record.exit.exit_code
    return found


def _records(content: bytes) -> Iterator[bytes]:
    record, position = b"", HEADER_BYTES
    while position + FRAGMENT_HEAD.size <= len(content):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < FRAGMENT_HEAD.size:
            position += left_in_block
            continue
        _, num_bytes, kind = FRAGMENT_HEAD.unpack_from(content, position)
        position += FRAGMENT_HEAD.size
        if position + num_bytes > len(content):
            return  # still being written
        assert kind in (FULL, FIRST, MIDDLE, LAST), kind
        record += content[position : position + num_bytes]
        position += num_bytes
        if kind in (FULL, LAST):
            yield record
            record = b""


def _items(items: object) -> dict[str, object]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def _own(items: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in items.items() if not name.startswith("_")}
