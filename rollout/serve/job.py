"""job=serve: the endpoint until it is stopped, and the same records as of any other job.

Each session's trajectory is on disk before its client hears that it ended. A step is the next thousand
sessions that ended, so that a long run keeps none of them in memory; a step's JCT is from the first start to
the last finish of its sessions, as everywhere.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict

from engines.errors import EngineError
from kvstore.errors import KvStoreError
from rollout.async_backend import AsyncRolloutBackend
from rollout.compose import to_yaml
from rollout.config import RunConfig
from rollout.errors import RolloutError, UserError
from rollout.job import versions
from rollout.metrics import KVBytes, StepSummary, series, summarise_job, summarise_step
from rollout.monitor import Monitor
from rollout.progress import Progress
from rollout.records import RecordError, TrajectoryWriter
from rollout.report import print_report
from rollout.run_dir import RunDir
from rollout.serve.endpoint import Endpoint, listen
from rollout.types import Trajectory

_STEP_SESSIONS = 1000
_STOPS = (signal.SIGINT, signal.SIGTERM)


def run_serve(config: RunConfig, overrides: Sequence[str] = ()) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code. Raises RolloutError with one line."""
    if config.resume is not None:
        raise UserError(
            "job=serve cannot go on with a run: its sessions' agents are elsewhere; leave out resume"
        )
    with listen(config.serve) as listener:
        try:
            asyncio.run(_run(config, overrides, listener))
        except (EngineError, KvStoreError) as error:
            raise RolloutError(" ".join(str(error).split())) from error
    return 0


async def _run(config: RunConfig, overrides: Sequence[str], listener: socket.socket) -> None:
    with ExitStack() as stack:
        run_dir = stack.enter_context(RunDir.open(config.run_dir, overwrite=config.overwrite))
        run_dir.write_config(to_yaml(config), overrides)
        progress = stack.enter_context(Progress.open(sys.stderr))
        monitor = stack.enter_context(Monitor.open(run_dir, config.monitor, asdict(config)))
        progress.phase("starting Ray and engines")
        began_s = time.monotonic()
        async with AsyncRolloutBackend(config) as backend:
            start_s = time.monotonic() - began_s
            progress.phase(backend.transport.told)
            with TrajectoryWriter(run_dir.trajectories) as writer:
                records = _Records(writer, monitor, backend)
                async with (
                    backend.serve(on_ended=records.ended, listener=listener) as endpoint,
                    _signals(records.stop),
                ):
                    progress.phase(_told(endpoint, config))
                    await records.stop.wait()
                    progress.phase("stopping")
            if records.failure is not None:
                raise records.failure
            await records.close()
            if config.monitor.trace_every:
                run_dir.draw(await backend.spans())
            summary = summarise_job(
                records.steps,
                job=config.job,
                seed=config.seed,
                timing_s={"start": start_s},
                versions=versions(),
            )
            summary["transport"] = backend.transport.config.kind
            run_dir.write_summary(summary)
            monitor.finish(summary)
    print_report(summary, run_dir)


class _Records:
    """What is written down of sessions that end."""

    def __init__(self, writer: TrajectoryWriter, monitor: Monitor, backend: AsyncRolloutBackend) -> None:
        self._writer = writer
        self._monitor = monitor
        self._backend = backend
        self._done: list[Trajectory] = []
        self._moved = KVBytes()
        self._closing: set[asyncio.Task[None]] = set()
        self._num_steps = 0
        self.steps: list[StepSummary] = []
        self.stop = asyncio.Event()
        self.failure: RecordError | None = None
        """Why nothing can be written any more."""

    def ended(self, trajectory: Trajectory) -> None:
        """A session ended; returns when it is on disk."""
        if self.failure is None:
            try:
                self._writer.append(self._num_steps, [trajectory])
            except RecordError as error:
                self.failure = error
                self.stop.set()
        self._done.append(trajectory)
        if len(self._done) == _STEP_SESSIONS:
            task = asyncio.create_task(self._end_step())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """No session is open any more."""
        await asyncio.gather(*self._closing)
        await self._backend.settled()
        await self._end_step()

    async def _end_step(self) -> None:
        done, self._done, step = self._done, [], self._num_steps
        self._num_steps += 1
        before, self._moved = self._moved, await self._backend.kv_bytes()
        summary = summarise_step(done, step, self._backend.weights_version, self._moved - before)
        self.steps.append(summary)
        self._monitor.log(series(summary) | await self._backend.store_figures(), step=step)


@asynccontextmanager
async def _signals(stop: asyncio.Event) -> AsyncIterator[None]:
    """Inside, Ctrl-C and SIGTERM set `stop`; afterwards they are as they were."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _STOPS}
    for number in _STOPS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _told(endpoint: Endpoint, config: RunConfig) -> str:
    line = (
        f"serving {endpoint.model} at {endpoint.base_url}; {endpoint.url}/sessions/NAME/v1 records an agent; "
        "Ctrl-C stops"
    )
    if endpoint.token is None:
        return line
    where = config.serve.token_file or f"{config.run_dir}/serve_token"
    return f"{line}; clients bring the token in {where}"
