"""Opens a store as a job's scheduler does and measures what that takes; a process of its own, so that its
memory is nobody else's: `python -m kvstore.tools.bench.open_probe DIRECTORY NUM_LOOKUPS`, JSON on stdout.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from random import Random

from kvstore.files import PosixFiles
from kvstore.keys import KeyChain, chain_root
from kvstore.layout import BlockLayout
from kvstore.prefix_index import PrefixIndex
from kvstore.segment_contents import SegmentContents
from kvstore.segment_scan import scan_segments
from kvstore.store_owner import StoreOwner
from kvstore.tools.bench.blocks import WEIGHTS
from kvstore.tools.bench.large_store import CONTEXT_BLOCKS, context_keys

LEASE_TTL_S = 30.0
MAX_CONTEXTS = 64


def main(directory: Path, num_lookups: int) -> dict[str, float]:
    files = PosixFiles()
    layout = _layout_in(directory)
    gc.collect()
    before = _memory_bytes("VmRSS")
    started_s = time.perf_counter()
    index = PrefixIndex()
    owner = StoreOwner(
        directory,
        capacity_bytes=None,
        reserve_bytes=0,
        lease_ttl_s=LEASE_TTL_S,
        files=files,
        clock=time.monotonic,
    )
    found = owner.recover(index, layout, WEIGHTS)
    took_s = time.perf_counter() - started_s
    peak = _memory_bytes("VmHWM")
    gc.collect()
    after = _memory_bytes("VmRSS")
    owner.close()
    return {
        "num_blocks": found.num_blocks,
        "num_segments": found.num_segments,
        "open_s": took_s,
        "rss_growth_bytes": after - before,
        "rss_peak_growth_bytes": peak - before,
        "lookup_s": _lookup_s(index, layout, found.num_blocks, num_lookups),
        "hash_s": _hash_s(layout, num_lookups // 10),
    }


def _layout_in(directory: Path) -> BlockLayout:
    first = next(scan_segments(directory, PosixFiles()))
    assert isinstance(first, SegmentContents), first
    return first.layout


def _lookup_s(index: PrefixIndex, layout: BlockLayout, num_blocks: int, num_lookups: int) -> float:
    """Median of lookups of whole contexts, all stored, in random order."""
    num_contexts = num_blocks // CONTEXT_BLOCKS
    chosen = Random(0).sample(range(num_contexts), min(MAX_CONTEXTS, num_contexts))
    contexts = [context_keys(layout, number) for number in chosen]
    took_s = []
    for number in range(num_lookups):
        keys = contexts[number % len(contexts)]
        started_s = time.perf_counter()
        match = index.match(keys)
        took_s.append(time.perf_counter() - started_s)
        assert match.num_blocks == CONTEXT_BLOCKS, match.num_blocks
    return statistics.median(took_s)


def _hash_s(layout: BlockLayout, rounds: int) -> float:
    """Median of hashing the tokens of a whole context into keys."""
    token_ids = [Random(0).randrange(1 << 17) for _ in range(CONTEXT_BLOCKS * layout.block_tokens)]
    took_s = []
    for _ in range(max(1, rounds)):
        chain = KeyChain(chain_root(WEIGHTS, layout.format), layout.block_tokens)
        started_s = time.perf_counter()
        chain.extend(token_ids)
        took_s.append(time.perf_counter() - started_s)
    return statistics.median(took_s)


def _memory_bytes(name: str) -> int:
    """VmRSS: what this process holds now; VmHWM: the most it ever held."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    json.dump(main(Path(sys.argv[1]), int(sys.argv[2])), sys.stdout)
