"""Ray: the running cluster that is to be joined, or what this host gives to one that a job starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kvstore.probes.finding import Finding, Verdict
from rollout.actors import OBJECT_STORE_BYTES, RayCluster
from rollout.config import RunConfig

_SHARED_MEMORY = Path("/dev/shm")
_FULL_SHARE = 0.95
"""Ray spills nothing to a disk that is fuller."""
_JOIN_DEADLINE_S = 8.0


def probe_ray(config: RunConfig) -> Sequence[Finding]:
    """Join `ray.address`, or look at the memory and the folder that a Ray started here would use."""
    if config.ray.address is not None:
        return [_join(config.ray.address)]
    return [_shared_memory(), _folder()]


def _join(address: str) -> Finding:
    """Raises UserError where it cannot be joined."""
    cluster = RayCluster(address, num_nodes=0, start_deadline_s=_JOIN_DEADLINE_S)
    try:
        has = cluster.resources()
    finally:
        cluster.close()
    told = f"joined {address}: {has['hosts']:.0f} hosts, {has['CPU']:.0f} CPUs, {has['GPU']:.0f} GPUs"
    return Finding("Ray", Verdict.OK, told, figures=has)


def _shared_memory() -> Finding:
    free = shutil.disk_usage(_SHARED_MEMORY).free
    told = f"{free / 1e9:.1f} GB free in {_SHARED_MEMORY}"
    if free >= OBJECT_STORE_BYTES:
        return Finding("shared memory", Verdict.OK, told)
    advice = (
        f"Ray's object store has {OBJECT_STORE_BYTES / 1e9:.1f} GB and would go to disk; "
        "start the container with --shm-size=2g"
    )
    return Finding("shared memory", Verdict.WARN, told, advice)


def _folder() -> Finding:
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    usage = shutil.disk_usage(folder)
    told = f"a job starts its own, on loopback; its logs go to {folder}/ray ({usage.free / 1e9:.1f} GB free)"
    if usage.used > _FULL_SHARE * usage.total:
        advice = f"that file system is over {_FULL_SHARE:.0%} full, and Ray will not spill to it; free some"
        return Finding("Ray", Verdict.WARN, told, advice)
    return Finding("Ray", Verdict.OK, told)
