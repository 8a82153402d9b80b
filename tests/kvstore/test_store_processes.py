"""Writers and readers in processes of their own, on one directory: killed, and stopped."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kvstore.stopped_process import stop_process
from tests.kvstore.test_crash_points import read_back

DEADLINE_S = 60.0


class StoreProcess:
    """A running tests.kvstore.store_process; `told` grows as it prints."""

    def __init__(self, directory: Path, writer_id: str, first: int) -> None:
        self.told: list[int] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kvstore.store_process", str(directory), writer_id, str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # a killed process may leave half a line
                self.told.append(int(line))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(DEADLINE_S)


@contextmanager
def running(directory: Path, writer_id: str, first: int) -> Iterator[StoreProcess]:
    process = StoreProcess(directory, writer_id, first)
    try:
        yield process
    finally:
        process.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_s, what
        time.sleep(0.01)


def test_a_writer_killed_again_and_again_loses_nothing_it_was_told_of(tmp_path: Path) -> None:
    random_ = random.Random(0)
    told: set[int] = set()
    for attempt in range(4):
        with running(tmp_path, f"w{attempt}", 10_000 * attempt) as writer:
            wanted = random_.randrange(1, 60)
            wait_until(lambda: len(writer.told) >= wanted, "the writer wrote nothing")  # noqa: B023
        told |= set(writer.told)
        assert told <= read_back(tmp_path, told)


def test_a_stopped_process_does_not_hold_up_another_on_the_same_directory(tmp_path: Path) -> None:
    with running(tmp_path, "a", 0) as stopped, running(tmp_path, "b", 10_000) as other:
        wait_until(lambda: len(stopped.told) >= 8 and len(other.told) >= 8, "both write")
        stop_process(stopped.process.pid)
        seen = len(other.told)
        wait_until(lambda: len(other.told) >= seen + 80, "the other process goes on")
        before = len(stopped.told)
        stopped.process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(stopped.told) >= before + 8, "the stopped one goes on when it may")
        assert other.process.poll() is None
        assert stopped.process.poll() is None
