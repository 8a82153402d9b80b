"""What runs in the scheduler's process: the scheduler, as the owner of its job's store directory."""

from __future__ import annotations

import os
from pathlib import Path

from engines.config import SchedulerConfig
from engines.errors import NotJoined
from engines.scheduler import Scheduler
from engines.store_keeper import StoreKeeper
from engines.types import ClusterSpeeds, Placement, TurnRequest, Weights
from kvstore.config import StoreConfig
from kvstore.layout import BlockLayout
from kvstore.open_store import open_owner


class SchedulerProcess(Scheduler):
    """A scheduler that finds what the directory holds, and evicts when it holds too much."""

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        kvstore: StoreConfig,
        directory: str,
        num_writers: int,
        prefill_load_limit_tokens: int,
        weights: Weights,
        speeds: ClusterSpeeds,
    ) -> None:
        """`num_writers` nodes of this job write into `directory`; with none, nobody keeps it."""
        super().__init__(
            config,
            prefill_load_limit_tokens=prefill_load_limit_tokens,
            weights=weights,
            dram_bytes=kvstore.dram_bytes,
            speeds=speeds,
            keeper=_keeper(kvstore, Path(directory), num_writers) if num_writers else None,
        )
        self._serves = False

    async def open_store(self, layout: BlockLayout, weights: Weights) -> None:
        """Take in what is stored under these weights, which engines hold; before any engine connects."""
        self._weights = weights
        if self._keeper is not None:
            await self._keeper.open(layout, self._weights.weights_id)

    async def begin(self, *, paused: bool) -> None:
        """All nodes and engines are enlisted: take turns from now on, but place none if `paused`."""
        self._paused = paused
        self._serves = True
        self._go_on()

    async def alive(self) -> int:
        """The process's id, as a sign of life."""
        self._require_serving()
        return os.getpid()

    async def submit(self, request: TurnRequest) -> Placement:
        self._require_serving()
        return await super().submit(request)

    def _require_serving(self) -> None:
        if not self._serves:
            raise NotJoined("the scheduler has not taken in its nodes and engines yet")


def _keeper(config: StoreConfig, directory: Path, num_writers: int) -> StoreKeeper | None:
    """None where there is no directory to keep: Mooncake's master evicts by itself."""
    if config.kind == "mooncake":
        return None
    owner = open_owner(config, directory=directory, num_writers=num_writers)
    return StoreKeeper(owner, refresh_s=config.refresh_s)
