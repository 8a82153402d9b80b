"""Memory: what a node may take of it, what may be locked, and how fast it is copied."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvstore.config import StoreConfig
from kvstore.host_memory import available_bytes, container_bytes, total_bytes
from kvstore.probes.finding import Finding, Verdict
from kvstore.transport_config import TransportConfig

_COPY_BYTES = 32 << 20
_SECONDS = 0.3
_FEW_FILES = 4096
_CAP_IPC_LOCK = 1 << 14


def probe_memory(config: StoreConfig, num_nodes: int) -> Sequence[Finding]:
    """Does the staging memory of the nodes fit, all of them on this host?"""
    needed, available, total = config.staging_bytes * num_nodes, available_bytes(), total_bytes()
    told = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available"
    limit = container_bytes()
    if limit is not None:
        told, available = f"{told}, {limit / 1e9:.1f} GB for this container", min(available, limit)
    figures = {"available_bytes": float(available), "staging_bytes": float(needed)}
    if needed <= available:
        return [Finding("memory", Verdict.OK, told, figures=figures)]
    advice = f"lower kvstore.staging_bytes: {num_nodes} nodes take {needed / 1e9:.1f} GB here"
    return [Finding("memory", Verdict.FAIL, told, advice, figures)]


def probe_copy_rate() -> Sequence[Finding]:
    """Bytes per second of one thread's memcpy, which shared memory and every staging copy are bound by."""
    source, target = np.ones(_COPY_BYTES, np.uint8), np.zeros(_COPY_BYTES, np.uint8)
    rates, end_s = [], time.perf_counter() + _SECONDS
    while time.perf_counter() < end_s:
        started_s = time.perf_counter()
        np.copyto(target, source)
        rates.append(_COPY_BYTES / (time.perf_counter() - started_s))
    rate = max(rates)
    told = f"one thread copies {rate / 1e9:.1f} GB/s"
    return [Finding("memory copy", Verdict.OK, told, figures={"bytes_per_s": rate})]


def probe_limits(config: StoreConfig, transport: TransportConfig) -> Sequence[Finding]:
    """`ulimit -n` and `ulimit -l`."""
    return [_files(), _locked(config.staging_bytes, transport)]


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"ulimit -n {_limit(soft)} (at most {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        advice = f"ulimit -n 65536: connections and segment files may need more than {_FEW_FILES}"
        return Finding("open files", Verdict.WARN, told, advice)
    return Finding("open files", Verdict.OK, told)


def _locked(staging_bytes: int, transport: TransportConfig) -> Finding:
    """Only registered memory is locked, so only RDMA is concerned."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    told = f"ulimit -l {_limit(soft >> 10 if soft != resource.RLIM_INFINITY else soft)}"
    if _may_lock_anything():
        return Finding("locked memory", Verdict.OK, f"{told}; this user may lock any (CAP_IPC_LOCK)")
    if soft == resource.RLIM_INFINITY or soft >= staging_bytes:
        return Finding("locked memory", Verdict.OK, told)
    advice = f"for RDMA: ulimit -l unlimited (memlock in limits.conf); a node locks {staging_bytes >> 10} KiB"
    verdict = Verdict.FAIL if transport.kind == "verbs" else Verdict.WARN
    return Finding("locked memory", verdict, told, advice)


def _may_lock_anything() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _CAP_IPC_LOCK)
    return False


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
