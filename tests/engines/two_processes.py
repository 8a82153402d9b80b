"""A prefill and a decode engine in two plain processes: the same conversation over several transports.

    python -m tests.engines.two_processes shm verbs verbs+cnic       prints what each turn said, as JSON

`+cnic`: host-device copies are made by the compute NICs too.

This process has the scheduler, the client, and the prefill node with its engine; its child has the decode
node with its engine. There is no Ray: calls between the two are pickled messages on a pair of sockets, in
which a part (engine, node, scheduler) is named and the other side calls it back. KV goes by the transport
alone. The child is forked when torch is imported, as that takes longest where a processor is emulated; what
it and transformers would import for want of nothing that is used here is left out.
"""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.engines.left_out import leave_out

NUM_TURNS = 4
DEVICES = Path("/sys/class/infiniband")
HERE, THERE = ("rxe0", "rxe1") if (DEVICES / "rxe1").exists() else (None, None)
"""Devices of the two processes; in the guest what they exchange crosses a cable. None: the best there is."""
FACTORY = "factory"
LENGTH_BYTES = 8


class Remote:
    """A part in the other process."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args, **kwargs: self._link.call(self._name, method, args, kwargs)


class Link:
    """One end of the connection. Both are alike: each serves its parts and calls those of the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.parts: dict[str, Any] = {}
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the other end is gone."""
        try:
            while True:
                nbytes = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
                self._take(await self._reader.readexactly(nbytes))
        except (asyncio.IncompleteReadError, ConnectionError):
            for future in self._waiting.values():
                future.set_exception(ConnectionError("the other process is gone"))

    async def call(self, name: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._num_calls += 1
        number, future = self._num_calls, asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._send(("call", number, name, method, args, kwargs))
        try:
            return await future
        finally:
            del self._waiting[number]

    def _take(self, message: bytes) -> None:
        match self._unpickle(message):
            case ("call", number, name, method, args, kwargs):
                task = asyncio.create_task(
                    self._serve(number, getattr(self.parts[name], method), args, kwargs)
                )
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case ("answer", number, answer):
                if number in self._waiting:
                    self._waiting[number].set_result(answer)
            case ("error", number, error):
                if number in self._waiting:
                    self._waiting[number].set_exception(error)

    async def _serve(
        self,
        number: int,
        method: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        try:
            self._send(("answer", number, await method(*args, **kwargs)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            self._send(("error", number, error))

    def _send(self, message: object) -> None:
        packed = self._pickle(message)
        self._writer.write(len(packed).to_bytes(LENGTH_BYTES, "big") + packed)

    def _pickle(self, message: object) -> bytes:
        link, file = self, io.BytesIO()
        names = {id(part): name for name, part in self.parts.items()}

        class Pickler(pickle.Pickler):
            def persistent_id(self, obj: object) -> str | None:
                return obj._name if isinstance(obj, Remote) and obj._link is link else names.get(id(obj))

        Pickler(file).dump(message)
        return file.getvalue()

    def _unpickle(self, message: bytes) -> Any:
        link = self

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, name: str) -> object:
                return link.parts.get(name) or Remote(link, name)

        return Unpickler(io.BytesIO(message)).load()


class Factory:
    """Makes the parts of the process that it is in."""

    def __init__(self, link: Link, device: str | None) -> None:
        self._link = link
        self._device = device

    async def make(self, cls: type, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._link.parts[name] = cls(*(self._on_own_device(arg) for arg in args), **kwargs)

    def _on_own_device(self, arg: Any) -> Any:
        from engines.processes import EngineSpec
        from kvstore.open_transport import TransportSpec

        if isinstance(arg, EngineSpec):
            return replace(arg, transport=self._on_own_device(arg.transport))
        if isinstance(arg, TransportSpec) and arg.config.kind == "verbs":
            return replace(arg, config=replace(arg.config, device=self._device))
        return arg


async def serve(sock: socket.socket) -> None:
    """The child."""
    link = Link(*await asyncio.open_connection(sock=sock))
    link.parts[FACTORY] = Factory(link, THERE)
    await link.run()


async def converse(sock: socket.socket, transports: list[str]) -> dict[str, Any]:
    """The conversation by each transport: what its turns said, and how many packets the device sent."""
    from tests.engines.tiny_models import save_tiny_model

    link = Link(*await asyncio.open_connection(sock=sock))
    serving = asyncio.create_task(link.run())
    with tempfile.TemporaryDirectory() as name:
        model_path = str(save_tiny_model("qwen3", Path(name) / "model"))
        told = {}
        for kind in transports:
            started, packets = time.monotonic(), num_packets()
            turns = await _converse_over(kind, link, model_path, Path(name) / kind)
            told[kind] = {
                "turns": turns,
                "packets": {counted: num - packets[counted] for counted, num in num_packets().items()},
                "took_s": round(time.monotonic() - started, 1),
            }
    serving.cancel()
    return told


async def _converse_over(over: str, link: Link, model_path: str, store: Path) -> list[dict[str, Any]]:
    from kvstore.job_token import JobToken
    from kvstore.open_transport import TransportSpec
    from kvstore.transport_config import TransportConfig
    from tests.engines.conversations import one_turn
    from tests.engines.local_cluster import cluster_spec, running_cluster

    spec = cluster_spec(model_path, store)
    kind, _, h2d = over.partition("+")
    config = TransportConfig(kind, "127.0.0.1", None, None, None)
    scheduler = replace(spec.scheduler, read_plan="alternate", heartbeat_deadline_s=30.0)
    rates = replace(spec.rates, h2d=h2d or "copy")
    transport = TransportSpec(config, JobToken.draw())
    spec = replace(spec, scheduler=scheduler, transport=transport, rates=rates)
    here = Factory(link, HERE)

    async def spawn(
        cls: type,
        *args: object,
        name: str,
        node: str | None,
        gpu: bool = False,
        restarts: bool = False,
        **kwargs: object,
    ) -> object:
        if node == "decode-0":
            await link.call(FACTORY, "make", (cls, name, args, kwargs), {})
            return Remote(link, name)
        await here.make(cls, name, args, kwargs)
        return link.parts[name]

    async with running_cluster(spec, spawn) as cluster:
        client = cluster.client_parts().client()
        context, turns = client.open_context(), []
        for number in range(NUM_TURNS):
            turn = await one_turn(client, context, number)
            turns.append({"token_ids": list(turn.token_ids), "hit_tokens": turn.hit_tokens})
            await cluster.pause(30)
            await cluster.resume()
        return turns


def num_packets() -> dict[str, int]:
    """Packets of RDMA that this process's device sent and received; nothing where it is no soft-RoCE."""
    counters = DEVICES / str(HERE) / "ports" / "1" / "hw_counters"
    found = [counters / name for name in ("sent_pkts", "rcvd_pkts") if (counters / name).exists()]
    return {path.name: int(path.read_text()) for path in found}


def main(transports: list[str]) -> None:
    leave_out()
    for name in ("engines.processes", "engines.model.load", "tests.engines.tiny_models"):
        import_module(name)
    ours, theirs = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=run_child, args=[theirs, ours], daemon=True)
    child.start()
    theirs.close()
    try:
        sys.stdout.write(json.dumps(asyncio.run(converse(ours, transports))) + "\n")
    finally:
        child.kill()


def run_child(sock: socket.socket, parents: socket.socket) -> None:
    parents.close()
    asyncio.run(serve(sock))


if __name__ == "__main__":
    main(sys.argv[1:])
