"""The endpoint on a port: `backend.serve()`. The only file that imports uvicorn.

It runs on the backend's event loop, beside everything else there. The port is taken before anything else is
done, so that one in use costs one line.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import uvicorn

from engines.client import EngineClient
from engines.model.load import ModelFolder
from rollout.config import RunConfig
from rollout.errors import RolloutError, UserError
from rollout.serve.app import Backend, Routes, make_app
from rollout.serve.config import ServeConfig
from rollout.serve.gate import Gate
from rollout.serve.metrics import EndpointMetrics
from rollout.serve.served_model import ServedModel
from rollout.serve.sessions import OnEnded, Sessions
from rollout.serve.wire import SessionEnd, SessionSpec
from rollout.types import StopReason, Trajectory

_BACKLOG = 1024
_START_DEADLINE_S = 30.0
_CLOSE_DEADLINE_S = 5
_TOKEN_FILE = "serve_token"


class Endpoint:
    """An endpoint that listens. All methods belong to the backend's event loop."""

    def __init__(self, url: str, token: str | None, model: str, sessions: Sessions) -> None:
        self.url = url
        """With scheme and port, without a path."""
        self.token = token
        """The bearer token that clients bring as their API key; None: they need none."""
        self.model = model
        """What clients call the model."""
        self._sessions = sessions

    @property
    def base_url(self) -> str:
        """For clients whose requests are not recorded."""
        return f"{self.url}/v1"

    def open_session(
        self,
        session_id: str,
        *,
        task_id: str | None = None,
        group_id: str | None = None,
        sample_index: int = 0,
    ) -> str:
        """Begin a trajectory; returns the base URL for its agent. Raises ApiError if the name was used."""
        spec = SessionSpec(task_id=task_id, group_id=group_id, sample_index=sample_index)
        self._sessions.open(session_id, spec)
        return f"{self.url}/sessions/{session_id}/v1"

    def end_session(
        self,
        session_id: str,
        reward: float = 0.0,
        *,
        stop_reason: StopReason = StopReason.DONE,
        error: str | None = None,
    ) -> Trajectory:
        """End it; the trajectory, or what it ended with before. Raises ApiError if there is none."""
        end = SessionEnd(reward=reward, stop_reason=stop_reason, error=error)
        return self._sessions.end(session_id, end)


def listen(config: ServeConfig) -> socket.socket:
    """Take the port. Raises UserError if that cannot be."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"serve.port={config.port} of {config.host} is in use; give another, or serve.port=0 for any "
                "that is free"
            ) from error
        reason = error.strerror or str(error)
        raise UserError(f"serve.host={config.host}, serve.port={config.port}: {reason}") from error
    return listener


def bearer_token(config: ServeConfig, run_dir: Path) -> str | None:
    """What clients must bring; None: nothing. Drawn and written to `run_dir` where it must be and none is
    given."""
    if config.token_file is not None:
        try:
            token = Path(config.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"serve.token_file={config.token_file} cannot be read: {error}") from error
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise UserError(f"serve.token_file={config.token_file} must hold one word of ASCII, the token")
        return token
    if _is_loopback(config.host):
        return None
    file, token = run_dir.absolute() / _TOKEN_FILE, secrets.token_urlsafe(32)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(token + "\n")
    return token


@asynccontextmanager
async def serving(
    backend: Backend,
    engines: EngineClient,
    folder: ModelFolder,
    config: RunConfig,
    *,
    on_ended: OnEnded | None = None,
    listener: socket.socket | None = None,
) -> AsyncIterator[Endpoint]:
    """Listen until the block is left; sessions that are open then end as aborted.

    `on_ended` is given every trajectory once. `listener`: a port that was taken before.
    """
    listener = listener or listen(config.serve)
    try:
        token = bearer_token(config.serve, Path(config.run_dir))
        model, metrics = ServedModel(engines, folder, config), EndpointMetrics()

        def ended(trajectory: Trajectory) -> None:
            metrics.session_ended(trajectory.outcome.value)
            if on_ended is not None:
                on_ended(trajectory)

        sessions = Sessions(model, config.serve, ended)
        routes = Routes(backend, model, sessions, metrics)
        gate = Gate(make_app(routes), config.serve, token, metrics.served)
        routes.num_running = lambda: gate.num_running
        expiring = asyncio.create_task(sessions.expire())
        try:
            async with _listening(gate, listener):
                yield Endpoint(_url(config.serve, listener), token, model.name, sessions)
        finally:
            expiring.cancel()
            sessions.close()
    finally:
        listener.close()


@asynccontextmanager
async def _listening(gate: Gate, listener: socket.socket) -> AsyncIterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(
            gate,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_DEADLINE_S,
        )
    )
    server.capture_signals = nullcontext  # they are for whoever runs the event loop
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(_START_DEADLINE_S):
            while not server.started:
                if running.done():
                    running.result()
                    raise RolloutError("the endpoint did not start")
                await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError, Exception):
            await asyncio.wait_for(running, 2 * _CLOSE_DEADLINE_S)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(config: ServeConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listener.getsockname()[1]}"
