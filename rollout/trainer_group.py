"""The trainer's ranks as one object, for whoever drives a job.

It decides only that all ranks are asked at once and that rank 0's answer counts; training itself is
rollout.trainer's.
"""

from __future__ import annotations

import asyncio
import socket
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any

from engines.cluster import Spawn
from rollout.batch import TrainRow
from rollout.train_metrics import TrainMetrics
from rollout.trainer import TrainerRank
from rollout.trainer_config import TrainerConfig
from rollout.types import Trajectory

_BUCKET_BYTES = 64 << 20


class TrainerGroup:
    """All ranks of one trainer. Any rank that raises fails the call."""

    def __init__(self, ranks: Sequence[Any]) -> None:
        self._ranks = list(ranks)

    @classmethod
    async def start(cls, spawn: Spawn, config: TrainerConfig, model_path: str, *, seed: int) -> TrainerGroup:
        """Start `config.ranks` processes and load the model into them."""
        port = _free_port()
        ranks = await asyncio.gather(
            *(
                spawn(
                    TrainerRank,
                    config,
                    model_path,
                    rank=rank,
                    world_size=config.ranks,
                    master_port=port,
                    seed=seed,
                    name=f"trainer-{rank}",
                    node=None,
                    gpu=config.device == "cuda",
                )
                for rank in range(config.ranks)
            )
        )
        group = cls(ranks)
        await group._all("setup")
        return group

    async def train_step(
        self, trajectories: Sequence[Trajectory], sampling_temperature: float
    ) -> TrainMetrics:
        """One GRPO step on all of a rollout step's trajectories."""
        metrics: TrainMetrics = (await self._all("train_step", trajectories, sampling_temperature))[0]
        return metrics

    async def logprobs(self, rows: Sequence[TrainRow], sampling_temperature: float) -> list[array[float]]:
        """The trainer's own logprobs of the rows' sampled tokens, 0.0 elsewhere."""
        found: list[array[float]] = (await self._all("logprobs", rows, sampling_temperature))[0]
        return found

    async def weights(self) -> AsyncIterator[tuple[str, Any]]:
        """Every weight by name, gathered from all ranks a bucket at a time."""
        plans = await self._all("bucket_plan", _BUCKET_BYTES)
        for index in range(len(plans[0])):
            for named in (await self._all("gather_bucket", index))[0]:
                yield named

    async def save(self, directory: str, *, step: int, weights_version: int) -> None:
        await self._all("save_checkpoint", directory, step, weights_version)

    async def load(self, directory: str) -> tuple[int, int]:
        """Go on from a checkpoint; its (step, weights version)."""
        loaded: tuple[int, int] = (await self._all("load_checkpoint", directory))[0]
        return loaded

    async def close(self) -> None:
        await self._all("close")

    async def _all(self, method: str, *args: object) -> list[Any]:
        return await asyncio.gather(*(getattr(rank, method)(*args) for rank in self._ranks))


def _free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
