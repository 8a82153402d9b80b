"""An actor whose process is killed: the next one is made with the same arguments, however large."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator

import pytest

from rollout.actors import RayCluster

pytestmark = pytest.mark.ray
DEADLINE_S = 60


class Holder:
    """Counts what it was made with."""

    def __init__(self, content: bytes, *, more: bytes) -> None:
        self._num_bytes = len(content) + len(more)

    async def found(self) -> tuple[int, int]:
        return os.getpid(), self._num_bytes


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    made = RayCluster(None, num_nodes=1, start_deadline_s=DEADLINE_S)
    yield made
    made.close()


@pytest.mark.parametrize("num_bytes", [10, 3_000_000])
def test_a_restarted_actor_has_its_arguments_however_large_they_are(
    cluster: RayCluster, num_bytes: int
) -> None:
    async def run() -> None:
        holder = await cluster.spawn(
            Holder, bytes(num_bytes), name="holder", node=None, restarts=True, more=b"more"
        )
        process, found = await holder.found()
        assert found == num_bytes + 4
        gc.collect()  # what only Ray still knows of is gone
        os.kill(process, signal.SIGKILL)
        await cluster.restart(holder)
        another, found = await holder.found()
        assert another != process
        assert found == num_bytes + 4

    asyncio.run(asyncio.wait_for(run(), DEADLINE_S))
