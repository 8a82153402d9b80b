"""Small real stores for the command line's tests, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstore.__main__ import main
from kvstore.block_record import record_header_bytes
from kvstore.keys import BlockKey, WeightsId, chain_root
from kvstore.layout import BlockLayout
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockLocation, BlockWrite
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, WEIGHTS, key_of, make_write

NOW_S = 1_760_000_000.0
HEADER_BYTES = record_header_bytes(SMALL)


def fill(
    directory: Path,
    numbers: Sequence[int],
    *,
    layout: BlockLayout = SMALL,
    weights_id: WeightsId = WEIGHTS,
    writer_id: str = "writer",
    created_s: float = NOW_S,
    parent: BlockKey | None = None,
    close: bool = True,
) -> list[BlockLocation]:
    """Write a context of the blocks `numbers` into a segment of its own; with `close` it is sealed.

    `parent`: the key before the first one's; a context's start if there is none.
    """
    store = SsdStore(
        directory, layout, writer_id=writer_id, io_threads=2, durability="none", wall_clock=lambda: created_s
    )
    parents = [parent or chain_root(weights_id, layout.format), *map(key_of, numbers)]
    writes = []
    for number, before in zip(numbers, parents, strict=False):
        block = make_write(layout, number, weights_id)
        writes.append(BlockWrite(block.key, before, weights_id, block.data, block.layer_checksums))
    locations = [location for location in store.write(writes, PLENTY_S) if location is not None]
    assert len(locations) == len(writes)
    if close:
        store.close()
    return locations


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.kv"))


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def answer_of(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path, exit_code: int = 0
) -> dict[str, Any]:
    """The JSON that the command line prints."""
    assert main([*map(str, arguments), "--json", "-"]) == exit_code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def table_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path, exit_code: int = 0) -> str:
    """What the command line shows to people."""
    assert main(list(map(str, arguments))) == exit_code
    return capsys.readouterr().out


def complaint_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on stderr about input that cannot be worked with."""
    assert main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kvstore: ")
    assert err.count("\n") == 1, err
    return err
