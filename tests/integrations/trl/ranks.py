"""Processes that are the ranks of one training job, as a launcher starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
_RUN_UNCOMPILED = """
import runpy, sys
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled, for most of a minute
run = {"-m": runpy.run_module, "-f": runpy.run_path}[sys.argv[1]]
del sys.argv[:2]
run(sys.argv[0], run_name="__main__")
"""


def run_ranks(num_ranks: int, command: list[str], *, cwd: Path, logs: Path, deadline_s: float) -> None:
    """Run `-m MODULE` or `-f FILE`, with its arguments, as so many ranks.

    When one fails the others are killed; what it said is in the error, and all of it in `logs`.
    """
    port, ends_s = _free_port(), time.monotonic() + deadline_s
    files = [logs / f"rank-{rank}.log" for rank in range(num_ranks)]
    ranks = [_start(rank, num_ranks, port, command, cwd, file) for rank, file in enumerate(files)]
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            assert time.monotonic() < ends_s, f"no end within {deadline_s} s\n{_tails(files)}"
            time.sleep(0.1)
        assert not any(rank.poll() for rank in ranks), _tails(files)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _start(
    rank: int, num_ranks: int, port: int, command: list[str], cwd: Path, log: Path
) -> subprocess.Popen[bytes]:
    environment = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", _RUN_UNCOMPILED, *command],
            cwd=cwd,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _tails(files: list[Path]) -> str:
    return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-4000:]}" for file in files)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
