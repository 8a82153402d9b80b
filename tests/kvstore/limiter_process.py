"""Processes that share a node's limiter: each moves bytes over one lane, or holds its lock."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from kvstore.limiter import LimiterHandle, NodeLimiter, carry
from kvstore.traffic import TrafficClass

ANSWER_DEADLINE_S = 60.0


class LimiterProcess:
    """Maps the limiter and waits to be told what to do."""

    def __init__(self, handle: LimiterHandle) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=[theirs, handle], daemon=True)
        self._process.start()

    def ready(self) -> None:
        self.answer()

    def carry(self, nbytes: int, start_s: float, deadline_s: float = ANSWER_DEADLINE_S) -> None:
        """Over the storage NIC, inbound, from time.monotonic() `start_s` on; `answer`: how much, and when."""
        self._pipe.send(("carry", nbytes, start_s, deadline_s))

    def hold_lock(self) -> None:
        """Take the limiter's lock and never let go of it."""
        self._pipe.send(("hold",))
        self.answer()

    def answer(self) -> Any:
        assert self._pipe.poll(ANSWER_DEADLINE_S), "the process does not answer"
        return self._pipe.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(ANSWER_DEADLINE_S)
        assert not self._process.is_alive()


@contextmanager
def limiter_processes(handle: LimiterHandle, num: int) -> Iterator[list[LimiterProcess]]:
    processes = [LimiterProcess(handle) for _ in range(num)]
    try:
        for process in processes:
            process.ready()
        yield processes
    finally:
        for process in processes:
            process.kill()


def _serve(pipe: Connection, handle: LimiterHandle) -> None:
    limiter = NodeLimiter.attach(handle)
    pipe.send("ready")
    while True:
        match pipe.recv():
            case ("carry", nbytes, start_s, deadline_s):
                time.sleep(max(0.0, start_s - time.monotonic()))
                lane, end_s = [limiter.snic.inbound], start_s + deadline_s
                carried = carry(lane, nbytes, TrafficClass.KV, since_s=start_s, end_s=end_s)
                pipe.send((carried, time.monotonic()))
            case ("hold",):
                with limiter.lock:
                    pipe.send("held")
                    time.sleep(ANSWER_DEADLINE_S)
