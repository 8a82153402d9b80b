"""The one address of Ray: it starts or joins a cluster, turns plain classes into actors, and calls them.

An actor is a plain class. `RayCluster.spawn` gives back a `Proxy` whose methods are coroutines with a
deadline; a dead or silent actor raises EngineFailed, an error the actor raised comes back as itself.
Actors carry control only; bulk arrays go through `share`, KV bytes never come here.

What shares a node shares a placement group, so an engine can map its node agent's staging memory. Ray deals
out the GPUs: an actor started without one sees none.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from engines.errors import EngineDead, EngineFailed
from engines.types import NodeId
from rollout.errors import RolloutError, UserError
from rollout.exchange import Desk, Line, NoAnswer

CALL_DEADLINE_S = 3600.0
"""Longest any call may take; callers that know better bring their own deadline."""
_LISTENER_DEADLINE_S = 5.0
_STOP_DEADLINE_S = 1.0
"""A process that is to be ended tells by then which one it is, or cannot tell."""
_LOOK_AGAIN_S = 0.2
OBJECT_STORE_BYTES = 1 << 30
"""Room for two buckets of weights per engine and what Ray needs itself."""
_BUNDLE_CPUS = 1
_NO_CONCURRENCY_LIMIT = 10_000
_SHARES_OF_A_GPU = 10_000
"""Ray counts parts of a GPU in these."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    # Without this Ray listens on the machine's own network address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


T = TypeVar("T")


class ActorHost:
    """What every actor is: a process that holds one object and calls its methods.

    The object's class is imported there and nowhere else, so that holding a proxy of an engine does not
    cost an agent worker the import of torch. Coroutines share the event loop; a plain method has it alone.
    """

    def __init__(self, module: str, name: str, given: Sequence[Any]) -> None:
        """`given`: a reference to the arguments of the class, which a restart takes once more."""
        with ThreadPoolExecutor(
            1
        ) as elsewhere:  # Ray warns of who waits on an actor's loop, though it is idle
            args, kwargs = elsewhere.submit(ray.get, given[0]).result()
        self._object = getattr(import_module(module), name)(*args, **kwargs)
        # What has been imported stays: looking at it again and again took a sixth of a busy scheduler's time.
        gc.freeze()
        self._desk = Desk(self._object)
        self._process = uuid.uuid4().hex

    async def process(self) -> str:
        """Tells this process from those that held the object before and after."""
        return self._process

    async def exchange(self, line: str, message: bytes) -> bytes:
        return await self._desk.exchange(line, message)

    async def call(self, method: str, *args: object, **kwargs: object) -> Any:
        result = getattr(self._object, method)(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result


class Proxy:
    """Calls a remote object's methods; picklable. Satisfies the Protocols of engines.peers.

    Calls made at the same time share messages (rollout.exchange), but for those that are given a value in
    Ray's object store.
    """

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        self._name = name
        self._lines: dict[asyncio.AbstractEventLoop, Line] = {}

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: object, **kwargs: object) -> Any:
            try:
                if any(isinstance(value, ray.ObjectRef) for value in (*args, *kwargs.values())):
                    return await self._call_directly(method, args, kwargs)
                return await self._line().call(method, args, kwargs)
            except RayTaskError as error:
                raise error.cause from None
            except ActorDiedError as error:
                raise EngineDead(f"{self._name} is dead: {_first_line(error)}") from None
            except RayActorError as error:
                raise EngineFailed(f"{self._name} cannot be reached: {_first_line(error)}") from None
            except NoAnswer:
                raise EngineFailed(f"{self._name}.{method} gave no answer") from None

        return call

    def __reduce__(self) -> tuple[type, tuple[Any, str]]:
        return Proxy, (self._handle, self._name)

    async def _call_directly(
        self, method: str, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        answer = asyncio.ensure_future(self._handle.call.remote(method, *args, **kwargs))
        # Cancelling the caller must not wait for the actor, so the answer is left to itself.
        answer.add_done_callback(_look_at)
        await asyncio.wait([answer], timeout=CALL_DEADLINE_S)
        if not answer.done():
            raise NoAnswer
        return answer.result()

    def __str__(self) -> str:
        return self._name

    async def process(self, deadline_s: float) -> str | None:
        """What tells the actor's process from others; None: it has none, and will have one. TimeoutError: it
        does not answer. EngineDead: there will be none any more."""
        asked = asyncio.ensure_future(self._handle.process.remote())
        asked.add_done_callback(_look_at)
        await asyncio.wait([asked], timeout=deadline_s)
        if not asked.done():
            raise TimeoutError
        try:
            return cast(str, asked.result())
        except ActorDiedError as error:
            raise EngineDead(f"{self._name} is dead: {_first_line(error)}") from None
        except RayActorError:
            return None

    def kill(self) -> None:
        """End the process, so that Ray makes another."""
        ray.kill(self._handle, no_restart=False)

    def _line(self) -> Line:
        """To this actor from this event loop."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            name = uuid.uuid4().hex

            async def send(message: bytes) -> bytes:
                return cast(bytes, await self._handle.exchange.remote(name, message))

            line = self._lines[loop] = Line(send, CALL_DEADLINE_S)
        return line


def _require_listener(address: str) -> None:
    """Raises OSError if nobody listens at "host:port": Ray itself asks for two minutes and then exits."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), _LISTENER_DEADLINE_S).close()


class RayCluster:
    """A Ray this job started, or one it joined. Only what it started is stopped."""

    def __init__(
        self,
        address: str | None,
        *,
        num_nodes: int,
        start_deadline_s: float,
        gpu_actors: Mapping[NodeId, int] | None = None,
    ) -> None:
        """`gpu_actors`: how many actors of each node will be started with a GPU."""
        self._start_deadline_s = start_deadline_s
        self._gpu_actors = dict(gpu_actors or {})
        self._started_ray = False
        self._groups: dict[NodeId, PlacementGroup] = {}
        self._actors: list[Any] = []
        self._given: list[Any] = []
        """What actors were made with. Ray forgets large arguments when nobody holds them, and an actor that
        needs them once more is then dead for good."""
        if not ray.is_initialized():
            self._init(address, num_nodes)
            self._started_ray = True
        self._is_local = address is None and len(ray.nodes()) == 1  # type: ignore[no-untyped-call]

    def _init(self, address: str | None, num_nodes: int) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        common: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            "configure_logging": False,
        }
        try:
            if address is None:
                # Logical CPUs: one for each node's placement group; processes share the real ones.
                ray.init(
                    address="local",  # never somebody else's that happens to run here
                    num_cpus=num_nodes * _BUNDLE_CPUS,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **common,
                )
            else:
                _require_listener(address)
                ray.init(address=address, **common)
        except Exception as error:  # Ray raises bare ones where a process of its own is slow to start
            what = (
                "Ray cannot be started here" if address is None else f"ray.address={address} cannot be joined"
            )
            raise UserError(f"{what}: {_first_line(error)}") from error

    @property
    def is_local(self) -> bool:
        """Whether this process started Ray itself, so that all of it is on this host."""
        return self._is_local

    async def on_hosts(self, nodes: Sequence[NodeId], function: Callable[[], T]) -> list[T]:
        """What `function` returns on the host of each node."""
        remote: Any = ray.remote(lambda: function())
        groups = [await self._group(node) for node in nodes]
        answers = [
            remote.options(num_cpus=0, scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
            for group in groups
        ]
        try:
            return await asyncio.wait_for(asyncio.gather(*answers), self._start_deadline_s)
        except TimeoutError:
            raise RolloutError(
                f"the hosts of the Ray cluster gave no answer within {self._start_deadline_s:.0f} s; "
                "raise engines.start_deadline_s"
            ) from None
        except RayTaskError as error:
            raise error.cause from None

    async def spawn(
        self,
        cls: type,
        *args: object,
        name: str,
        node: NodeId | None,
        gpu: bool = False,
        restarts: bool = False,
        **kwargs: object,
    ) -> Any:
        """Start `cls(*args, **kwargs)` as an actor; returns its Proxy once its constructor is through.

        What `restarts` is made anew by Ray when its process ends; nobody's calls are made again.
        """
        options = self._options(await self._group(node) if node else None, self._gpu_share() if gpu else 0)
        options["max_restarts"] = -1 if restarts else 0
        # A class of its own, so that the process shows what it is.
        host: Any = ray.remote(type(cls.__name__, (ActorHost,), {}))
        given = await self.share((args, kwargs))
        self._given.append(given)
        handle = host.options(**options).remote(cls.__module__, cls.__name__, [given])
        self._actors.append(handle)
        try:
            await asyncio.wait_for(handle.__ray_ready__.remote(), self._start_deadline_s)
        except TimeoutError:
            raise RolloutError(
                f"{name} did not start within {self._start_deadline_s:.0f} s; raise engines.start_deadline_s"
            ) from None
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise RolloutError(f"{name} could not start: {_cause(error)}") from None
        return Proxy(handle, name)

    async def restart(self, part: Proxy) -> None:
        """End the process of an actor that `restarts`, whatever it does; returns when another one is up.

        Raises EngineFailed if there is none by the start's deadline.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._start_deadline_s
        before = None
        try:
            before = await part.process(_STOP_DEADLINE_S)
        except TimeoutError:
            await asyncio.to_thread(part.kill)
        else:
            if before is not None:
                await asyncio.to_thread(part.kill)
        while (left_s := end_s - loop.time()) > 0:
            with suppress(TimeoutError):
                if await part.process(left_s) not in (None, before):
                    return
            await asyncio.sleep(_LOOK_AGAIN_S)
        raise EngineFailed(f"{part} did not start again within {self._start_deadline_s:.0f} s")

    async def share(self, value: object) -> Any:
        """Put a big value where every actor can map it; pass what comes back in its place."""
        return await asyncio.to_thread(ray.put, value)

    def resources(self) -> dict[str, float]:
        """Hosts, CPUs and GPUs of the whole cluster."""
        has = ray.cluster_resources()  # type: ignore[no-untyped-call]
        hosts = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
        return {"hosts": float(hosts), "CPU": has.get("CPU", 0.0), "GPU": has.get("GPU", 0.0)}

    def close(self) -> None:
        """Kill the actors, and stop Ray if this job started it."""
        for handle in self._actors:
            ray.kill(handle)
        self._actors.clear()
        self._given.clear()
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()
        if self._started_ray:
            ray.shutdown()

    def _gpu_share(self) -> float:
        """What an actor gets of a GPU: a whole one, or as much as leaves some for all."""
        num_gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
        if num_gpus == 0:
            raise UserError("device=cuda needs a GPU and Ray has none; use engines.device=cpu")
        actors_per_gpu = max(1, -(-sum(self._gpu_actors.values()) // num_gpus))
        return _SHARES_OF_A_GPU // actors_per_gpu / _SHARES_OF_A_GPU

    def _options(self, group: PlacementGroup | None, num_gpus: float) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": num_gpus,
            "max_concurrency": _NO_CONCURRENCY_LIMIT,
            "runtime_env": {"env_vars": _actor_environment(sees_gpu=num_gpus > 0)},
        }
        if group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        return options

    async def _group(self, node: NodeId) -> PlacementGroup:
        """The placement group of a node: its agent and engines land on one host."""
        group = self._groups.get(node)
        if group is None:
            # A bundle for each GPU actor: a share in a bundle of its own lies on one GPU.
            bundles: list[dict[str, float]] = [{"CPU": _BUNDLE_CPUS}]
            bundles += [{"GPU": self._gpu_share()} for _ in range(self._gpu_actors.get(node, 0))]
            group = placement_group(bundles, strategy="STRICT_PACK")
            self._groups[node] = group
            try:
                await asyncio.wait_for(group.ready(), self._start_deadline_s)
            except (TimeoutError, GetTimeoutError):
                raise RolloutError(
                    f"no host of the Ray cluster has room for {node}, which needs "
                    + " and ".join(f"{count} {kind}" for bundle in bundles for kind, count in bundle.items())
                ) from None
        return group


def _look_at(answer: asyncio.Future[Any]) -> None:
    """Whoever asked may be gone: an error nobody waits for is no news."""
    if not answer.cancelled():
        answer.exception()


def _actor_environment(*, sees_gpu: bool) -> dict[str, str]:
    """One OpenMP thread unless the class sets more: spinning threads starve their neighbours."""
    own = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if not sees_gpu:
        # Ray names the GPUs of an actor that has some, and hides none from one that has not.
        own |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return own | _ENVIRONMENT


def _cause(error: RayActorError) -> str:
    text = str(error).strip().splitlines()
    return text[-1].strip() if text else type(error).__name__


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].strip() if text else type(error).__name__
