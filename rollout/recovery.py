"""What becomes of the samples of an agent worker that is lost: where they go on, and from what.

A worker that is brought back knows of nothing it played. What its samples had is in the journal, turn by
turn; without one they begin anew, with the same random numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from engines.supervisor import Supervisor
from rollout.agent_run import Sample
from rollout.journal import StepJournal, read_step
from rollout.resumption import taken_up
from rollout.types import Trajectory

_READ_AGAIN_S = 1.0
"""Samples of one worker that ask within so long share a reading of the journal."""


class Recovery:
    """One per backend, on its event loop."""

    def __init__(self, supervisor: Supervisor, names: Sequence[str], deadline_s: float) -> None:
        """`names` are the workers'; one that is not back after `deadline_s` is given up."""
        self._supervisor = supervisor
        self._names = names
        self._deadline_s = deadline_s
        self._journal: tuple[Path, int] | None = None
        self._reading = asyncio.Lock()
        self._read: StepJournal | None = None
        self._read_s = -_READ_AGAIN_S

    def records_in(self, journal: tuple[Path, int] | None) -> None:
        """Finished turns are written to this folder, as of this step; None: nowhere."""
        self._journal = journal

    async def worker_is_back(self, index: int) -> None:
        """Return when the worker plays again. Raises EngineFailed after the deadline."""
        await self._supervisor.comes_back(self._names[index], self._deadline_s)

    async def known(self, sample: Sample) -> Sample | Trajectory:
        """The sample with the turns that are on record, or what it was when it ended."""
        if self._journal is None:
            return sample
        folder, step = self._journal
        async with self._reading:
            if time.monotonic() - self._read_s >= _READ_AGAIN_S:
                self._read = await asyncio.to_thread(read_step, folder, step)
                self._read_s = time.monotonic()
        return sample if self._read is None else taken_up(self._read, sample)
