"""What runs in the scheduler's process: the scheduler, as the owner of its job's store directory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from engines.cluster_watch import ClusterWatch, Watched
from engines.config import SchedulerConfig
from engines.errors import EngineFailed
from engines.peers import PrefillPeer
from engines.scheduler import Scheduler
from engines.store_keeper import StoreKeeper
from engines.types import ClusterSpeeds, EngineId, Weights
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
        self._watch: ClusterWatch | None = None

    async def open_store(self, layout: BlockLayout) -> None:
        """Take in what earlier runs stored under these weights; before any engine connects."""
        if self._keeper is not None:
            await self._keeper.open(layout, self._weights.weights_id)

    async def watch(
        self, parts: Mapping[str, Watched], prefill_engines: Mapping[EngineId, PrefillPeer]
    ) -> None:
        """Find out from now on which of the nodes and engines answer; `prefill_engines` are told, too."""

        async def tell(absent: frozenset[str]) -> None:
            await self.set_absent(absent)
            there = (engine for engine_id, engine in prefill_engines.items() if engine_id not in absent)
            await asyncio.gather(*(self._tell(engine, absent) for engine in there))

        self._watch = ClusterWatch(
            parts, tell, period_s=self._config.heartbeat_s, deadline_s=self._config.heartbeat_deadline_s
        )
        self._watch.start()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        await super().close()

    async def _tell(self, engine: PrefillPeer, absent: frozenset[str]) -> None:
        with suppress(EngineFailed, TimeoutError):  # it is found to be absent itself then
            async with asyncio.timeout(self._config.heartbeat_deadline_s):
                await engine.set_absent(absent)


def _keeper(config: StoreConfig, directory: Path, num_writers: int) -> StoreKeeper | None:
    """None where there is no directory to keep: Mooncake's master evicts by itself."""
    if config.kind == "mooncake":
        return None
    owner = open_owner(config, directory=directory, num_writers=num_writers)
    return StoreKeeper(owner, refresh_s=config.refresh_s)
