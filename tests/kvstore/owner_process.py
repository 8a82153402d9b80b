"""A process that owns staging memory and does what it is told: the peer of staging and transport tests."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from kvstore.checksum import checksum
from kvstore.layout import BlockLayout
from kvstore.staging import StagingHandle, StagingMemory

ANSWER_DEADLINE_S = 60.0


class OwnerProcess:
    """Use as a context manager; killed at its end."""

    def __init__(self, layout: BlockLayout, num_slots: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=[theirs, layout, num_slots], daemon=True)

    def __enter__(self) -> OwnerProcess:
        self._process.start()
        self.handle: StagingHandle = self._answer()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to clean up."""
        self._process.kill()
        self._process.join(ANSWER_DEADLINE_S)
        assert not self._process.is_alive()

    def fill(self, slot_id: int, value: int) -> None:
        self._pipe.send(("fill", slot_id, value))
        self._answer()

    def slot_checksum(self, slot_id: int) -> int:
        self._pipe.send(("checksum", slot_id, 0))
        return self._answer()

    def num_mappings(self) -> int:
        """How many processes of this machine map the memory."""
        mapped = 0
        for path in Path("/proc").glob("[0-9]*/maps"):
            try:
                mapped += self.handle.incarnation in path.read_text()
            except OSError:  # the process ended meanwhile
                continue
        return mapped

    def _answer(self):
        assert self._pipe.poll(ANSWER_DEADLINE_S), "the owner process does not answer"
        return self._pipe.recv()


def _serve(pipe: Connection, layout: BlockLayout, num_slots: int) -> None:
    memory = StagingMemory.create("owner", layout, num_slots)
    pipe.send(memory.handle)
    while True:
        command, slot_id, value = pipe.recv()
        if command == "fill":
            memory.slot(slot_id)[:] = value
        pipe.send(checksum(memory.slot(slot_id)))
