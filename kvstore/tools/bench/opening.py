"""Opening a store of very many blocks, and looking a context up in it, each time in a fresh process."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from kvstore.errors import StoreError
from kvstore.tools.bench import open_probe
from kvstore.tools.bench.figures import Figure, Findings
from kvstore.tools.bench.large_store import CONTEXT_BLOCKS, write_large_store
from kvstore.tools.bench.sizes import BenchSizes, layout_of

GOAL_OPEN_S = 5.0
GOAL_RSS_MB = 300.0
GOAL_LOOKUP_MS = 1.0
NUM_LAYERS = 8
DEADLINE_S = 600.0


def measure_opening(folder: Path, sizes: BenchSizes, findings: Findings) -> None:
    """Add the figures of the index. `folder` is left as it was."""
    directory = folder / "large"
    directory.mkdir()
    try:
        layout = layout_of(sizes.index_block_bytes, NUM_LAYERS)
        write_large_store(directory, layout, sizes.index_blocks)
        runs = [_probe(directory, sizes.lookups) for _ in range(sizes.openings)]
    finally:
        shutil.rmtree(directory)
    findings.series["opening"] = runs
    if any(run["num_blocks"] != sizes.index_blocks for run in runs):
        raise StoreError(f"of {sizes.index_blocks} blocks {runs[0]['num_blocks']} were found at opening")

    def median(name: str, per_unit: float) -> float:
        return round(statistics.median(run[name] for run in runs) / per_unit, 3)

    findings.figures += [
        Figure("open_1m_blocks", median("open_s", 1), "s, lower is better", GOAL_OPEN_S, "lower"),
        Figure(
            "open_1m_blocks_rss_growth",
            median("rss_growth_bytes", 1e6),
            "MB, lower is better",
            GOAL_RSS_MB,
            "lower",
        ),
        Figure(
            f"lookup_{CONTEXT_BLOCKS}_keys",
            median("lookup_s", 1e-3),
            "ms, lower is better",
            GOAL_LOOKUP_MS,
            "lower",
        ),
        Figure(f"hash_{CONTEXT_BLOCKS}_blocks", median("hash_s", 1e-3), "ms, lower is better"),
    ]


def _probe(directory: Path, num_lookups: int) -> dict[str, float]:
    command = [sys.executable, "-m", open_probe.__name__, str(directory), str(num_lookups)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        raise StoreError(f"the process that opens the large store failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer
