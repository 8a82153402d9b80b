"""A store's own threads: reads first, writes beside them, every batch with a deadline.

Turns wait for reads and for no write. So some threads only read and others only write, and neither kind
can take the other's however long the medium is stuck. A write starts only while no read is waiting for a
thread, or once it has itself waited `max_write_wait_s`.

Work comes in batches of jobs; a job costs a few microseconds here. Whoever waits for a batch may do
something with each job's result meanwhile, so that the threads themselves go on with I/O.
At its deadline a batch's waiting jobs are cancelled; one that is running goes on, and its `settled` is set
when it has ended.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvstore.errors import StoreError
from kvstore.io_priority import LOWEST_LEVEL, set_io_priority
from kvstore.traffic import CLASS_TABLE, TrafficClass

logger = logging.getLogger(__name__)

MAX_WRITE_WAIT_S = 0.05

_READ_LEVEL = CLASS_TABLE[TrafficClass.KV].io_priority
_WRITE_LEVEL = min(LOWEST_LEVEL, _READ_LEVEL + 1)

_A = TypeVar("_A")
_R = TypeVar("_R")


class _Batch:
    """Jobs that one caller waits for."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended: queue.SimpleQueue[Job[Any, Any]] = queue.SimpleQueue()


@dataclass(eq=False, slots=True)
class Job(Generic[_A, _R]):
    """One piece of work and what became of it."""

    work: Callable[[_A], _R]
    argument: _A
    batch: _Batch
    queued_s: float
    """When it was handed over, by the monotonic clock."""
    result: _R | None = None
    """Of a job that ended in time; None if `work` raised, which is logged."""
    settled: threading.Event | None = None
    """Of a job that did not end in time: set once it touches nothing any more. None: it ended in time."""
    started: bool = False
    ended: bool = False

    def run(self) -> None:
        try:
            self.result = self.work(self.argument)
        except Exception:
            logger.exception("an I/O thread met an error nobody expected; its blocks count as failed")


class WaitingJobs:
    """Which job comes next. Pure: it is told the time. Not thread-safe."""

    def __init__(self, max_write_wait_s: float) -> None:
        self._max_write_wait_s = max_write_wait_s
        self.reads: deque[Job[Any, Any]] = deque()
        self.writes: deque[Job[Any, Any]] = deque()

    def next_read(self) -> Job[Any, Any] | None:
        return self.reads.popleft() if self.reads else None

    def next_write(self, now_s: float) -> Job[Any, Any] | None:
        """None where there is none, or reads go first."""
        return self.writes.popleft() if self.write_wait_s(now_s) == 0 else None

    def write_wait_s(self, now_s: float) -> float | None:
        """Seconds until the first write may start even if reads keep waiting; None: there is no write."""
        if not self.writes:
            return None
        if not self.reads:
            return 0.0
        return max(0.0, self.writes[0].queued_s + self._max_write_wait_s - now_s)

    def drop_ended(self) -> None:
        """Forget the jobs that were cancelled."""
        self.reads = deque(job for job in self.reads if not job.ended)
        self.writes = deque(job for job in self.writes if not job.ended)


class IoThreads:
    """The threads. Thread-safe."""

    def __init__(
        self, num_readers: int, num_writers: int, *, max_write_wait_s: float = MAX_WRITE_WAIT_S
    ) -> None:
        self._waiting = WaitingJobs(max_write_wait_s)
        self._lock = threading.Lock()
        self._read_waits = threading.Condition(self._lock)
        self._write_waits = threading.Condition(self._lock)
        self._all_ended = threading.Condition(self._lock)
        self._num_unfinished = 0
        self._closed = False
        # Daemons: a medium that never answers must not keep the process from ending.
        self._threads = [
            threading.Thread(target=target, name=f"kv-{name}-{i}", daemon=True)
            for name, target, number in (
                ("read", self._serve_reads, num_readers),
                ("write", self._serve_writes, num_writers),
            )
            for i in range(number)
        ]
        for thread in self._threads:
            thread.start()

    def run_reads(
        self,
        work: Callable[[_A], _R],
        arguments: Sequence[_A],
        deadline_s: float,
        as_ended: Callable[[Job[_A, _R]], None] = lambda job: None,
    ) -> list[Job[_A, _R]]:
        """`work` on each argument; returns when all have ended, or after `deadline_s` seconds.

        The caller's own thread does `as_ended` with each job that has, while the others go on.
        Raises StoreError if the threads were closed.
        """
        jobs = self._hand_over(work, arguments, reading=True)
        self._wait(jobs, deadline_s, as_ended)
        return jobs

    def run_writes(
        self, work: Callable[[_A], _R], arguments: Sequence[_A], deadline_s: float
    ) -> list[Job[_A, _R]]:
        """As `run_reads`, behind the reads."""
        jobs = self._hand_over(work, arguments, reading=False)
        self._wait(jobs, deadline_s, lambda job: None)
        return jobs

    def close(self, deadline_s: float) -> int:
        """Take no more work and wait for what there is; the number of jobs that have not ended in time."""
        with self._lock:
            self._closed = True
            self._all_ended.wait_for(lambda: self._num_unfinished == 0, deadline_s)
            self._read_waits.notify_all()
            self._write_waits.notify_all()
            return self._num_unfinished

    def _hand_over(
        self, work: Callable[[_A], _R], arguments: Sequence[_A], *, reading: bool
    ) -> list[Job[_A, _R]]:
        batch, now_s = _Batch(), time.monotonic()
        jobs = [Job(work, argument, batch, now_s) for argument in arguments]
        with self._lock:
            if self._closed:
                raise StoreError("the store is closed")
            self._num_unfinished += len(jobs)
            if reading:
                self._waiting.reads.extend(jobs)
                self._read_waits.notify(len(jobs))
            else:
                self._waiting.writes.extend(jobs)
                self._write_waits.notify(len(jobs))
        return jobs

    def _wait(
        self, jobs: Sequence[Job[_A, _R]], deadline_s: float, as_ended: Callable[[Job[_A, _R]], None]
    ) -> None:
        end_s = time.monotonic() + deadline_s
        for _ in jobs:
            try:
                job = jobs[0].batch.ended.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                break
            as_ended(job)
        else:
            return
        self._give_up(jobs)
        with suppress(queue.Empty):
            while True:
                job = jobs[0].batch.ended.get_nowait()
                if job.settled is None:  # it ended just before the others were given up
                    as_ended(job)

    def _give_up(self, jobs: Sequence[Job[_A, _R]]) -> None:
        with self._lock:
            for job in jobs:
                if job.ended:
                    continue
                job.settled = threading.Event()
                if not job.started:
                    self._end(job)
            self._waiting.drop_ended()
            self._let_writes_go()

    def _serve_reads(self) -> None:
        set_io_priority(_READ_LEVEL)
        while (job := self._take_read()) is not None:
            self._do(job)

    def _serve_writes(self) -> None:
        set_io_priority(_WRITE_LEVEL)
        while (job := self._take_write()) is not None:
            self._do(job)

    def _do(self, job: Job[Any, Any]) -> None:
        job.run()
        with self._lock:
            self._end(job)

    def _take_read(self) -> Job[Any, Any] | None:
        """The next read, once there is one; None when there will be no more."""
        with self._lock:
            while (job := self._waiting.next_read()) is None:
                if self._closed:
                    return None
                self._read_waits.wait()
            job.started = True
            self._let_writes_go()
            return job

    def _take_write(self) -> Job[Any, Any] | None:
        """The next write, once it may start; None when there will be no more."""
        with self._lock:
            while (job := self._waiting.next_write(time.monotonic())) is None:
                wait_s = self._waiting.write_wait_s(time.monotonic())
                if wait_s is None and self._closed:
                    return None
                self._write_waits.wait(wait_s)
            job.started = True
            return job

    def _let_writes_go(self) -> None:
        """Wake who would write, if no read waits any more. The caller holds the lock."""
        if not self._waiting.reads and self._waiting.writes:
            self._write_waits.notify(len(self._waiting.writes))

    def _end(self, job: Job[Any, Any]) -> None:
        """It touches nothing any more. The caller holds the lock."""
        job.ended = True
        job.batch.ended.put(job)
        if job.settled is not None:
            job.settled.set()
        self._num_unfinished -= 1
        if self._num_unfinished == 0:
            self._all_ended.notify_all()
