"""`RolloutBackend`: the rollout backend for an ordinary, synchronous training loop.

It runs an AsyncRolloutBackend on an event loop in a thread of its own; every method waits for its twin.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.async_backend import AsyncRolloutBackend
from rollout.config import RunConfig
from rollout.controller import Running
from rollout.errors import RolloutError
from rollout.metrics import KVBytes
from rollout.pulled import Pulled
from rollout.serve.config import ServeConfig
from rollout.tasks import Task
from rollout.types import Trajectory

if TYPE_CHECKING:
    from rollout.serve.blocking import BlockingEndpoint

T = TypeVar("T")


class RolloutBackend:
    """`with RolloutBackend(config) as backend: trajectories = backend.generate(tasks)`."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._backend = AsyncRolloutBackend(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout", daemon=True)

    def __enter__(self) -> RolloutBackend:
        self._thread.start()
        try:
            self._call(self._backend.start())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything this backend started. Idempotent."""
        if not self._thread.is_alive():
            return
        try:
            self._call(self._backend.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def generate(self, tasks: Sequence[Task]) -> list[Trajectory]:
        """Play each task `task.group_size` times; trajectories in the order of tasks and samples."""
        return self._call(self._backend.generate(tasks))

    def stream(self, tasks: Sequence[Task]) -> Iterator[Trajectory]:
        """The same, each trajectory as soon as it ends; leaving early ends what still runs."""
        trajectories = self._backend.stream(tasks)
        try:
            while (trajectory := self._call(_next(trajectories))) is not None:
                yield trajectory
        finally:
            self._call(_close(trajectories))

    def submit(self, task: Task) -> list[str]:
        """Begin to play one task's group; returns the trajectory ids for `result` and `abort`."""

        async def submit() -> list[str]:
            return self._backend.submit(task)

        return self._call(submit())

    def result(self, trajectory_id: str, deadline_s: float | None = None) -> Trajectory:
        """The trajectory of a submitted sample, once it ends. Each is handed out once."""
        return self._call(self._backend.result(trajectory_id, deadline_s))

    def abort(self, trajectory_id: str) -> None:
        """End a running trajectory; it comes back truncated, with what it has."""
        self._call(self._backend.abort(trajectory_id))

    @contextmanager
    def serve(
        self, config: ServeConfig | None = None, *, on_ended: Callable[[Trajectory], None] | None = None
    ) -> Iterator[BlockingEndpoint]:
        """Inside, an OpenAI-compatible endpoint for agents that run elsewhere; see AsyncRolloutBackend.

        `on_ended` is called on the backend's thread.
        """
        serving = self._backend.serve(config, on_ended=on_ended)
        from rollout.serve.blocking import BlockingEndpoint

        endpoint = self._call(_enter(serving))
        try:
            yield BlockingEndpoint(endpoint, self._call)
        finally:
            self._call(_leave(serving))

    def update_weights(self, version: int, weights: Iterable[tuple[str, Any]]) -> None:
        """Load new weights into every engine from (name, tensor) pairs; see AsyncRolloutBackend.

        `weights` is iterated on the caller's thread, whose collectives and CUDA device it may need.
        """
        pulled = Pulled(weights)
        self._hand_out(pulled, self._backend.update_weights(version, pulled))

    @property
    def needs_weights(self) -> bool:
        """Whether the engines that held the weights of the last update were lost, all at once."""
        return self._backend.needs_weights

    def restore_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Give the weights of the last update again; see AsyncRolloutBackend, and update_weights."""
        pulled = Pulled(weights)
        self._hand_out(pulled, self._backend.restore_weights(pulled))

    def pause(self) -> None:
        """Start no further turn; returns when the running ones are through."""
        self._call(self._backend.pause())

    def resume(self) -> None:
        self._call(self._backend.resume())

    def metrics(self) -> Mapping[str, float]:
        """What the backend holds and has done since the start, as flat slash-named figures."""
        return self._call(self._backend.metrics())

    def kv_bytes(self) -> KVBytes:
        """KV bytes moved through the nodes' storage NICs since the start."""
        return self._call(self._backend.kv_bytes())

    @property
    def running(self) -> list[Running]:
        """Trajectories under way, oldest first."""
        return self._backend.running

    @property
    def weights_version(self) -> int:
        self._require_running()
        return self._backend.weights_version

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._begin(coroutine)
        with _cancelled_on_error(future):
            return future.result()

    def _hand_out(self, pulled: Pulled[Any], taking: Coroutine[Any, Any, None]) -> None:
        """Iterate on this thread for `taking`, until it is done."""
        future = self._begin(taking)
        future.add_done_callback(pulled.stop)
        with _cancelled_on_error(future):
            pulled.serve()
            future.result()

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._thread.is_alive():
            coroutine.close()
        self._require_running()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _require_running(self) -> None:
        if not self._thread.is_alive():
            raise RolloutError("the backend does not run; use it inside `with RolloutBackend(config)`")


@contextmanager
def _cancelled_on_error(future: Future[Any]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        future.cancel()
        raise


async def _next(trajectories: AsyncIterator[Trajectory]) -> Trajectory | None:
    return await anext(trajectories, None)


async def _close(trajectories: AsyncIterator[Trajectory]) -> None:
    close = getattr(trajectories, "aclose", None)
    if close is not None:
        await close()


async def _enter(manager: AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _leave(manager: AbstractAsyncContextManager[Any]) -> None:
    await manager.__aexit__(None, None, None)
