"""Trajectories that were asked for one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Sequence

from rollout.agent_run import Sample
from rollout.errors import RolloutError
from rollout.types import Trajectory


class Submitted:
    """Each is handed out once. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._results: dict[str, asyncio.Future[Trajectory]] = {}
        self._groups: set[asyncio.Task[None]] = set()

    def add(self, samples: Sequence[Sample], played: AsyncIterable[Trajectory]) -> list[str]:
        """Begin to take `played`, which are the trajectories of `samples`; returns their ids."""
        loop = asyncio.get_running_loop()
        names = [sample.trajectory_id for sample in samples]
        self._results |= {name: loop.create_future() for name in names}
        group = asyncio.create_task(self._take(names, played))
        self._groups.add(group)
        group.add_done_callback(self._groups.discard)
        return names

    async def result(self, trajectory_id: str, deadline_s: float | None) -> Trajectory:
        """Wait for it; TimeoutError if it has not ended by the deadline, and it may be asked for again."""
        async with asyncio.timeout(deadline_s):
            trajectory = await asyncio.shield(self._results[trajectory_id])
        del self._results[trajectory_id]
        return trajectory

    async def close(self) -> None:
        """End what still runs."""
        for group in self._groups:
            group.cancel()
        await asyncio.gather(*self._groups, return_exceptions=True)

    async def _take(self, names: Sequence[str], played: AsyncIterable[Trajectory]) -> None:
        """Whatever ends the group early is told to those that wait."""
        results = [self._results[name] for name in names]
        try:
            async for trajectory in played:
                self._results[trajectory.trajectory_id].set_result(trajectory)
        except RolloutError as error:
            for result in results:
                if not result.done():
                    result.set_exception(error)
        finally:
            for result in results:
                result.cancel()
