"""Starts parts of the cluster anew that are dead, and gives them what they need to serve again.

    engine      connected to its node, given the current weights by an engine that holds them, enlisted
    node        its memory begins anew, and so do its engines; engines of other nodes learn where it is
    scheduler   what it knew is made again: the index from the store's directory, which all nodes write to,
                its books from nodes and engines that have let go of every turn; clients submit theirs again
    others      whatever their owner says (agent workers)

A proxy of a part stays good when its process is another. One part at a time, and none while weights are
updated: what "the current weights" are stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from engines.answered import answered
from engines.cluster_watch import BringBack, ClusterWatch, Watched
from engines.errors import EngineFailed, NotJoined
from engines.health import PartHealth
from engines.joining import Joining
from engines.types import EngineId, EngineRole, NodeId

logger = logging.getLogger(__name__)
SCHEDULER = "scheduler"
_BUCKET_BYTES = 64 << 20
_LOOK_FOR_WEIGHTS_S = 1.0
_LOOK_S = 0.1

Restart = Callable[[Any], Awaitable[None]]
"""Ends a part's process, whatever it does, and returns when a new one is up: the same object, made anew."""


class Supervisor:
    """One per cluster, on its driver's event loop."""

    def __init__(self, joining: Joining, restart: Restart | None) -> None:
        """Without `restart` parts are watched, and get no work while they do not answer."""
        self.paused = False
        """Whether a scheduler that comes back is to place nothing."""
        self.changing = asyncio.Lock()
        """Held by who changes what the parts are or hold."""
        self._lacking: set[EngineId] = set()
        """Engines that are STALE, as nobody holds the current weights."""
        self._joining = joining
        self._restart = restart
        scheduler, config = joining.spec.scheduler, joining.spec.engines
        self._heartbeat_deadline_s = scheduler.heartbeat_deadline_s
        self._patience_s = config.start_deadline_s
        self._let_go_s = config.abort_deadline_s
        self.watch = ClusterWatch(
            self._tell,
            period_s=scheduler.heartbeat_s,
            deadline_s=scheduler.heartbeat_deadline_s,
            restart_after_s=scheduler.restart_after_s,
        )

    def start(self) -> None:
        """Watch all parts from now on."""
        joining = self._joining
        self._add(SCHEDULER, joining.scheduler, self._bring_back_scheduler)
        for node_id, node in joining.nodes.items():
            self._add(node_id, node, partial(self._bring_back_node, node_id))
        for engine_id, engine in joining.engines.items():
            self._add(engine_id, engine, partial(self._bring_back_engine, engine_id))

    def add(self, name: str, part: Watched, then: Callable[[], Awaitable[None]]) -> None:
        """Watch another part too; `then` sees to what is due when its process is another."""

        async def bring_back(health: PartHealth) -> None:
            assert self._restart is not None
            await self._restart(part)
            health.started()
            await then()

        self._add(name, part, bring_back)

    async def comes_back(self, name: str, deadline_s: float) -> None:
        """A part that somebody has met with a failure: return when it has been found so, and serves again.

        Raises EngineFailed after the deadline.
        """
        num_restarts = self.watch.health(name).num_restarts
        with suppress(TimeoutError):  # it answers: whoever met it was wrong
            async with asyncio.timeout(min(deadline_s, 2 * self._heartbeat_deadline_s)):
                health = self.watch.health(name)
                while health.serves and health.num_restarts == num_restarts:  # noqa: ASYNC110 - as below
                    await asyncio.sleep(_LOOK_S)
        await self.serves(name, deadline_s)

    async def serves(self, name: str, deadline_s: float) -> None:
        """Return when the part gets work; EngineFailed if it does not by the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                while not self.watch.health(name).serves:  # noqa: ASYNC110 - as often as anybody asks
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            why = self.watch.health(name).why
            raise EngineFailed(f"{name} is not back after {deadline_s:.0f} s: {why}") from None

    @property
    def needs_weights(self) -> bool:
        """Whether no engine serves, and some would if they were given weights: an update is due."""
        serving = (engine_id for engine_id in self._joining.engines if self.watch.health(engine_id).serves)
        return bool(self._lacking) and next(serving, None) is None

    async def some_can_load(self, deadline_s: float) -> None:
        """Return when there is an engine to load weights into; EngineFailed if there is none by the
        deadline."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not self.that_can_load():  # noqa: ASYNC110 - asked once an update
                    await asyncio.sleep(_LOOK_S)
        if not self.that_can_load():
            raise EngineFailed(f"no engine is there to take weights after {deadline_s:.0f} s")

    def that_can_load(self) -> dict[str, Any]:
        """Engines whose processes have joined: those that serve, and those that lack the current weights."""
        engines = self._joining.engines
        fit = (e for e in engines if self.watch.health(e).serves or e in self._lacking)
        return {engine_id: engines[engine_id] for engine_id in fit}

    def have_taken(self, engine_ids: Collection[str]) -> None:
        """These hold the current weights now; those that were STALE will serve in a moment."""
        self._lacking.difference_update(engine_ids)

    def close(self) -> None:
        self.watch.close()

    # -- inside --------------------------------------------------------------------------------------

    def _add(self, name: str, part: Watched, bring_back: BringBack) -> None:
        self.watch.add(name, part, None if self._restart is None else bring_back)

    async def _tell(self, absent: frozenset[str]) -> None:
        """Scheduler and prefill engines hear who gets no work; who cannot be told will be when he is back."""
        there = [part for name, part in self._joining.prefill_engines.items() if name not in absent]
        if SCHEDULER not in absent:
            there.append(self._joining.scheduler)
        told = (answered("a part", part.set_absent(absent), self._heartbeat_deadline_s) for part in there)
        for answer in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, EngineFailed):
                raise answer

    async def _fresh(self, part: Any, health: PartHealth) -> None:
        """Have the part in a process that has just begun; it may have been started anew already."""
        assert self._restart is not None
        try:
            await answered("a part", part.alive(), self._heartbeat_deadline_s)
        except NotJoined:
            pass
        except EngineFailed:
            await self._restart(part)
        else:
            await self._restart(part)
        health.started()

    async def _bring_back_engine(self, engine_id: EngineId, health: PartHealth) -> None:
        joining, engine = self._joining, self._joining.engines[engine_id]
        await self._needs(SCHEDULER, joining.places[engine_id].node_id)
        async with self.changing:
            await self._fresh(engine, health)
            await self._answered(engine_id, joining.join_engine(engine_id))
            if joining.places[engine_id].role is EngineRole.PREFILL:
                await self._answered(engine_id, engine.set_absent(self.watch.absent))
        while not await self._enlist_with_weights(engine_id):  # noqa: ASYNC110 - it asks others
            await asyncio.sleep(_LOOK_FOR_WEIGHTS_S)

    async def _bring_back_node(self, node_id: NodeId, health: PartHealth) -> None:
        """Its engines map memory that is gone: they are ended first, so that nobody reads it any more."""
        joining = self._joining
        await self._needs(SCHEDULER)
        async with self.changing:
            assert self._restart is not None
            own = joining.engines_of(node_id)
            ending = (self._restart(joining.engines[engine_id]) for engine_id in own)
            await asyncio.gather(self._fresh(joining.nodes[node_id], health), *ending)
            for engine_id in own:
                await self.watch.lose(engine_id, f"the memory of {node_id} is gone")
            await self._answered(node_id, joining.learn_node(node_id))
            others = (e for e in joining.prefill_engines if e not in own and self.watch.health(e).serves)
            await self._answered(node_id, joining.tell_of_node(node_id, others))
            await self._answered(node_id, joining.enlist_node(node_id))
            for engine_id in own:
                if joining.places[engine_id].role is EngineRole.DECODE:
                    await self._answered(node_id, joining.reserve(engine_id))  # before turns take its slots

    async def _bring_back_scheduler(self, health: PartHealth) -> None:
        joining = self._joining
        async with self.changing:
            await self._fresh(joining.scheduler, health)
            await self._let_go_of_all()
            opening = joining.scheduler.open_store(joining.layout, joining.weights)
            await self._answered(SCHEDULER, opening)
            for node_id in joining.nodes:
                await self._answered(node_id, joining.enlist_node(node_id))
            await self._answered(SCHEDULER, joining.scheduler.set_absent(self.watch.absent - {SCHEDULER}))
            for engine_id, engine in joining.decode_engines.items():
                if self.watch.health(engine_id).serves:
                    reserve = await self._answered(engine_id, joining.reserve(engine_id))
                    await self._answered(engine_id, engine.renew_reserve(reserve))
            for engine_id in joining.engines:
                await self._answered(engine_id, joining.enlist_engine(engine_id))
            await self._answered(SCHEDULER, joining.introduce())
            await self._answered(SCHEDULER, joining.scheduler.begin(paused=self.paused))

    async def _let_go_of_all(self) -> None:
        """Nobody touches a slot any more; engines and nodes that do not say so begin anew."""
        joining = self._joining
        all_parts = (*joining.nodes.items(), *joining.engines.items())
        parts: dict[str, Any] = {str(name): part for name, part in all_parts}
        names = [name for name in parts if self.watch.health(name).serves]
        asked = (answered(name, parts[name].let_go_of_all(), self._let_go_s) for name in names)
        told = await asyncio.gather(*asked, return_exceptions=True)
        for name, answer in zip(names, told, strict=True):
            if isinstance(answer, BaseException):
                await self.watch.lose(name, f"it did not let go of all turns: {answer}")
        if any(isinstance(answer, Collection) and answer for answer in told):
            await asyncio.sleep(self._heartbeat_deadline_s)  # what was sent has time to arrive

    async def _enlist_with_weights(self, engine_id: EngineId) -> bool:
        """False while nobody holds the current weights: the engine is STALE until the next update."""
        async with self.changing:
            if not await self._has_weights(engine_id):
                if not self._lacking:
                    logger.warning(
                        "no engine holds weights version %d any more; none serves before the next update",
                        self._joining.weights.version,
                    )
                self._lacking.add(engine_id)
                return False
            self._lacking.discard(engine_id)
            await self._answered(engine_id, self._joining.enlist_engine(engine_id))
            return True

    async def _has_weights(self, engine_id: EngineId) -> bool:
        """Whether the engine holds the current weights, by now: another one that does gives them."""
        joining, engine = self._joining, self._joining.engines[engine_id]
        if await self._answered(engine_id, engine.held()) == joining.weights:
            return True
        for holder_id in joining.engines:
            if holder_id != engine_id and self.watch.health(holder_id).serves:
                bucket_of = joining.engines[holder_id].read_weights
                sizes = await self._answered(holder_id, joining.engines[holder_id].weight_sizes())
                for names in _buckets(sizes):
                    bucket = await self._answered(holder_id, bucket_of(names))
                    await self._answered(engine_id, engine.load_weights(bucket))
                await self._answered(engine_id, engine.set_weights(joining.weights))
                return True
        return False

    async def _needs(self, *names: str) -> None:
        """Raise EngineFailed unless these serve: without them nothing can be brought back."""
        for name in names:
            if not self.watch.health(name).serves:
                raise EngineFailed(f"{name} is {self.watch.health(name).state.value}")

    async def _answered(self, name: str, call: Awaitable[Any]) -> Any:
        return await answered(name, call, self._patience_s)


def _buckets(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in order, in buckets of about `_BUCKET_BYTES`."""
    buckets: list[list[str]] = [[]]
    filled_bytes = 0
    for name, nbytes in sizes.items():
        if buckets[-1] and filled_bytes + nbytes > _BUCKET_BYTES:
            buckets.append([])
            filled_bytes = 0
        buckets[-1].append(name)
        filled_bytes += nbytes
    return buckets
