"""`job=doctor`: what this machine offers a job of this configuration, and what to do where that is little.

It decides which probes there are and how their findings look; what is good enough, each probe knows. All ends
within 20 s, whatever hangs.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.probes.gpu import probe_gpus
from kvstore.probes.finding import Finding, Probe, Verdict
from kvstore.probes.io_uring import probe_io_uring
from kvstore.probes.loopback import probe_loopback
from kvstore.probes.memory import probe_copy_rate, probe_limits, probe_memory
from kvstore.probes.processor import probe_processor
from kvstore.probes.rdma import probe_rdma
from kvstore.probes.run_probes import run_probes
from kvstore.probes.store_place import probe_disk_rate, probe_store_place
from kvstore.probes.traffic_classes import probe_tcp_classes
from rollout.compose import to_yaml
from rollout.config import RunConfig
from rollout.probes.isolation import probe_isolation
from rollout.probes.packages import probe_packages
from rollout.probes.ray_host import probe_ray
from rollout.probes.settings import probe_settings
from rollout.run_dir import RunDir, RunDirError

EXIT_UNFIT = 1
MEASURING_DEADLINE_S = 3.0
DEADLINE_S = 9.0
PLAIN_COLUMNS = 100
_COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def run_doctor(config: RunConfig, overrides: Sequence[str], stream: TextIO | None = None) -> int:
    """Look, print, and write summary.json to run_dir; 1 if anything is FAIL."""
    started_s = time.monotonic()
    found = run_probes(probes(config), deadline_s=DEADLINE_S, measuring_deadline_s=MEASURING_DEADLINE_S)
    findings = [finding for each in found.values() for finding in each]
    counts = Counter(finding.verdict for finding in findings)
    took_s = time.monotonic() - started_s
    written = _write(config, overrides, {"took_s": took_s, **_answer(findings, counts)})
    findings.append(written)
    counts[written.verdict] += 1
    _print(findings, counts, took_s, stream or sys.stdout)
    return EXIT_UNFIT if counts[Verdict.FAIL] else 0


def probes(config: RunConfig) -> list[Probe]:
    """All of them, in the order they are told."""
    store, transport = config.kvstore, config.transport
    directory = Path(store.path or Path(config.run_dir) / "kvstore").absolute()
    num_nodes = config.engines.prefill_nodes + config.engines.decode_nodes
    return [
        Probe("packages", probe_packages),
        Probe("settings", partial(probe_settings, config)),
        Probe("processor", probe_processor),
        Probe("memory", partial(probe_memory, store, num_nodes)),
        Probe("memory copy", probe_copy_rate, measures=True),
        Probe("limits", partial(probe_limits, store, transport)),
        Probe("GPU", partial(probe_gpus, config.engines)),
        Probe("RDMA", partial(probe_rdma, transport)),
        Probe("TCP classes", probe_tcp_classes),
        Probe("loopback", probe_loopback, measures=True),
        Probe("store", partial(probe_store_place, store, directory)),
        Probe("disk", partial(probe_disk_rate, store, directory), measures=True),
        Probe("io_uring", probe_io_uring),
        Probe("Ray", partial(probe_ray, config)),
        Probe("sandbox", probe_isolation),
    ]


def _answer(findings: Sequence[Finding], counts: Counter[Verdict]) -> dict[str, Any]:
    return {
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "findings": [finding.answer() for finding in findings],
    }


def _write(config: RunConfig, overrides: Sequence[str], answer: dict[str, Any]) -> Finding:
    """Where a job would write is one more thing to be looked at."""
    try:
        with RunDir.open(config.run_dir, overwrite=config.overwrite) as run_dir:
            run_dir.write_config(to_yaml(config), overrides)
            run_dir.write_summary({"job": config.job, "seed": config.seed, **answer})
    except RunDirError as error:
        return Finding("run_dir", Verdict.FAIL, str(error), "name another folder by run_dir=")
    return Finding("run_dir", Verdict.OK, f"all of this is in {config.run_dir}/summary.json")


def _print(findings: Sequence[Finding], counts: Counter[Verdict], took_s: float, stream: TextIO) -> None:
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else PLAIN_COLUMNS)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        told = Text(finding.told)
        if finding.advice:
            told.append(f"\n-> {finding.advice}", "italic")
        table.add_row(Text(finding.verdict.value, _COLOURS[finding.verdict]), finding.subject, told)
    console.print(table)
    total = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict)
    console.print(f"\n{total} in {took_s:.1f} s")
