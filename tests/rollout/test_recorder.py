"""Records reach the journal in order and once, whoever comes and goes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.errors import EngineFailed
from rollout.journal import JournalError, JournalWriter
from rollout.journal_record import FORMAT, StepBegan, unframe
from rollout.recorder import Recorder
from rollout.worker import AgentWorker
from tests.rollout.test_worker import worker_spec

BEGAN = StepBegan(FORMAT, 0, 0, "w", "s")


class Teller:
    """Tells one record after the other, and counts who listens."""

    def __init__(self, name: str, num_records: int) -> None:
        self._left = [f"{name}{index};".encode() for index in range(num_records)]
        self._kept: list[bytes] = []
        self._first = 0
        self.told_all = asyncio.Event()

    async def records(self, after: int, wait_s: float) -> tuple[int, list[bytes]]:
        await asyncio.sleep(0)
        del self._kept[: after - self._first]
        self._first = after
        self._kept += self._left[:2]
        del self._left[:2]
        if not self._left and not self._kept:
            self.told_all.set()
            await asyncio.sleep(wait_s)
        return self._first + len(self._kept), list(self._kept)


def written(path: Path) -> bytes:
    data = path.read_bytes()
    (_, end), *_ = unframe(data)
    return data[end:]


def test_each_record_is_written_once_and_in_order(tmp_path: Path) -> None:
    async def record() -> Path:
        tellers = [Teller("a", 5), Teller("b", 3)]
        recorder = Recorder(tellers)
        with JournalWriter(tmp_path, BEGAN) as journal:
            async with asyncio.timeout(20), recorder.recording(journal, 1.0):
                await asyncio.gather(*(teller.told_all.wait() for teller in tellers))
        return journal.path

    told = written(asyncio.run(record())).decode()
    assert [part for part in told.split(";") if part.startswith("a")] == [f"a{i}" for i in range(5)]
    assert [part for part in told.split(";") if part.startswith("b")] == [f"b{i}" for i in range(3)]


def test_what_is_told_at_the_very_end_is_written_too(tmp_path: Path) -> None:
    async def record() -> Path:
        with JournalWriter(tmp_path, BEGAN) as journal:
            async with asyncio.timeout(20), Recorder([Teller("a", 2)]).recording(journal, 1.0):
                pass
        return journal.path

    assert written(asyncio.run(record())) == b"a0;a1;"


def test_a_dead_worker_costs_its_records_and_nothing_else(tmp_path: Path) -> None:
    class Dead:
        async def records(self, after: int, wait_s: float) -> tuple[int, list[bytes]]:
            raise EngineFailed("the worker is dead")

    async def record() -> Path:
        teller = Teller("a", 4)
        with JournalWriter(tmp_path, BEGAN) as journal:
            async with asyncio.timeout(20), Recorder([Dead(), teller]).recording(journal, 1.0):
                await teller.told_all.wait()
        return journal.path

    assert written(asyncio.run(record())) == b"a0;a1;a2;a3;"


def test_a_journal_that_cannot_be_written_ends_the_step_with_one_line(tmp_path: Path) -> None:
    class Full(JournalWriter):
        def append(self, frames: object) -> None:
            if self.num_bytes:
                raise JournalError("cannot write the journal: No space left on device")
            super().append(frames)  # type: ignore[arg-type]

    async def record() -> None:
        with Full(tmp_path, BEGAN) as journal:
            async with asyncio.timeout(20), Recorder([Teller("a", 2)]).recording(journal, 1.0):
                await asyncio.Event().wait()

    with pytest.raises(JournalError, match="No space left"):
        asyncio.run(record())


def test_a_worker_keeps_its_records_until_they_are_known_to_be_written() -> None:
    async def look() -> list[tuple[int, list[bytes]]]:
        parts = SimpleNamespace(client=lambda name: None)
        worker = AgentWorker(worker_spec(parts, keeps_records=True))
        worker._records += [b"0", b"1"]
        seen = [await worker.records(0, 5.0), await worker.records(0, 5.0), await worker.records(1, 5.0)]
        return [*seen, await worker.records(2, 0.01)]

    assert asyncio.run(look()) == [(2, [b"0", b"1"]), (2, [b"0", b"1"]), (2, [b"1"]), (2, [])]
