"""Another process that serves a staging memory over TCP, and plain TCP beside it, to be measured against."""

from __future__ import annotations

import multiprocessing
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Self

from kvstore.job_token import JobToken
from kvstore.probes.loopback import LoopbackServer
from kvstore.staging import StagingHandle, StagingMemory
from kvstore.tcp_server import TcpServer
from kvstore.tools.errors import WrongInput
from kvstore.transport import RegionHandle

_START_S = 120.0


class TransportPeer:
    """Serves the memory of `staging` until it is closed. Use as a context manager."""

    def __init__(self, staging: StagingHandle) -> None:
        context = multiprocessing.get_context("spawn")
        self.token = JobToken.draw()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=[theirs, staging, self.token], daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_START_S):
            raise WrongInput(f"the other process did not start within {_START_S:.0f} s; is the machine busy?")
        self.region: RegionHandle
        self.loopback_port: int
        self.region, self.loopback_port = self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join(_START_S)


def _serve(pipe: Connection, staging: StagingHandle, token: JobToken) -> None:
    memory = StagingMemory.attach(staging)
    with closing(memory), closing(TcpServer(token)) as server, LoopbackServer(staging.nbytes) as loopback:
        pipe.send((server.register(memory), loopback.port))
        pipe.poll(None)
