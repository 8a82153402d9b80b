"""A process that writes blocks into a store directory and reads all it finds there, until it is stopped.

usage: python -m tests.kvstore.store_process DIRECTORY WRITER_ID FIRST_NUMBER
Prints the number of each block it was told the location of, one a line, as soon as it knows.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from kvstore.direct_io import aligned_buffer
from kvstore.files import PosixFiles
from kvstore.segment_contents import SegmentContents
from kvstore.segment_scan import scan_segments
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockRead, ReadStatus
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, make_write

BATCH = 4
MOST_READ = 16


def main(directory: Path, writer_id: str, first: int) -> None:
    store = SsdStore(
        directory, SMALL, writer_id=writer_id, io_threads=2, durability="none", segment_bytes=400_000
    )
    for start in itertools.count(first, BATCH):
        numbers = range(start, start + BATCH)
        locations = store.write([make_write(SMALL, number) for number in numbers], PLENTY_S)
        for number, location in zip(numbers, locations, strict=True):
            assert location is not None, store.caching_stopped
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
        read_some(store, directory, writer_id)


def read_some(store: SsdStore, directory: Path, writer_id: str) -> None:
    """The newest blocks of every writer. Its own are whole; another's newest may be half written."""
    for contents in scan_segments(directory, PosixFiles()):
        if not isinstance(contents, SegmentContents):
            continue  # its writer has made the file and not yet its header
        newest = range(max(0, len(contents) - MOST_READ), len(contents))
        reads = [
            BlockRead(contents.key(i), contents.location(i), aligned_buffer(SMALL.slot_bytes)) for i in newest
        ]
        for result in store.read(reads, PLENTY_S):
            whole = result.status is ReadStatus.OK
            assert whole or contents.writer_id != writer_id, (contents.name, result.status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
