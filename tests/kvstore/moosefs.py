"""A MooseFS of its own, started and stopped by scripts/moosefs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "moosefs"
DEADLINE_S = 120.0
CANNOT_RUN_HERE = 3


@dataclass(frozen=True)
class MooseFs:
    """One master, two chunkservers, two copies of everything; each mount is a client of its own."""

    directory: Path

    @property
    def mounts(self) -> tuple[Path, Path]:
        return self.directory / "mnt1", self.directory / "mnt2"

    def kill_chunkserver(self, number: int) -> None:
        """SIGKILL to chunkserver 1 or 2."""
        os.kill(int((self.directory / f"chunkserver{number}.pid").read_text()), signal.SIGKILL)


@contextmanager
def running_moosefs(directory: Path) -> Iterator[MooseFs]:
    """Skips the test where this machine cannot run it; the script's line says why."""
    up = subprocess.run(["bash", SCRIPT, "up", directory], capture_output=True, text=True, timeout=DEADLINE_S)
    if up.returncode == CANNOT_RUN_HERE:
        pytest.skip(up.stderr.strip().splitlines()[-1])
    assert up.returncode == 0, up.stderr
    try:
        yield MooseFs(directory)
    finally:
        down = subprocess.run(
            ["bash", SCRIPT, "down", directory], capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert down.returncode == 0, down.stderr
        assert not directory.exists()
