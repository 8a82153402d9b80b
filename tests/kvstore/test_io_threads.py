"""Who goes first on a store's threads, and what happens at a deadline."""

from __future__ import annotations

import ctypes
import platform
import threading
import time

import pytest

from kvstore.errors import StoreError
from kvstore.io_priority import set_io_priority
from kvstore.io_threads import IoThreads, Job, WaitingJobs, _Batch
from tests.kvstore.kv_blocks import PLENTY_S


def job(queued_s=0.0):
    return Job(lambda argument: argument, None, _Batch(), queued_s)


@pytest.fixture
def threads():
    threads = IoThreads(2, 1, max_write_wait_s=0.05)
    yield threads
    assert threads.close(PLENTY_S) == 0


class Gate:
    """Work that says when it has begun and ends when told."""

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()

    def __call__(self, argument):
        self.begun.release()
        assert self.may_end.wait(PLENTY_S)
        return argument


def in_background(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


# Which job comes next ----------------------------------------------------------------------------


def test_a_write_waits_while_reads_wait_but_not_for_ever():
    waiting, read, write = WaitingJobs(max_write_wait_s=0.05), job(10.0), job(10.0)
    waiting.reads.append(read)
    waiting.writes.append(write)
    assert waiting.next_write(10.04) is None
    assert waiting.write_wait_s(10.04) == pytest.approx(0.01)
    assert waiting.next_write(10.06) is write
    assert waiting.next_read() is read
    assert waiting.next_read() is None
    assert waiting.write_wait_s(10.0) is None


def test_a_write_starts_at_once_where_no_read_waits():
    waiting, write = WaitingJobs(max_write_wait_s=0.05), job(10.0)
    waiting.writes.append(write)
    assert waiting.next_write(10.0) is write
    assert waiting.next_write(99.0) is None


# The threads -------------------------------------------------------------------------------------


def test_every_job_is_done_and_results_keep_their_order(threads):
    jobs = threads.run_reads(lambda number: number * 2, range(500), PLENTY_S)
    assert [job.result for job in jobs] == [number * 2 for number in range(500)]
    assert all(job.settled is None for job in jobs)
    assert threads.run_writes(str, [], PLENTY_S) == []


def test_writes_that_are_stuck_leave_the_readers_alone(threads):
    gate = Gate()
    writer = in_background(threads.run_writes, gate, range(5), PLENTY_S)
    assert gate.begun.acquire(timeout=PLENTY_S)
    assert [job.result for job in threads.run_reads(abs, [-1, -2, -3], PLENTY_S)] == [1, 2, 3]
    gate.may_end.set()
    writer.join(PLENTY_S)


def test_reads_that_are_stuck_leave_the_writers_alone(threads):
    gate = Gate()
    reader = in_background(threads.run_reads, gate, range(5), PLENTY_S)
    for _ in range(2):
        assert gate.begun.acquire(timeout=PLENTY_S)
    # Three reads wait for a thread, so the write goes ahead only because it has waited long enough.
    started_s = time.monotonic()
    assert threads.run_writes(abs, [-4], PLENTY_S)[0].result == 4
    assert time.monotonic() - started_s >= 0.05
    gate.may_end.set()
    reader.join(PLENTY_S)


def test_a_write_goes_as_soon_as_the_last_waiting_read_has_a_thread():
    threads, gate, done = IoThreads(1, 1, max_write_wait_s=PLENTY_S), Gate(), []
    readers = in_background(threads.run_reads, gate, range(2), PLENTY_S)
    assert gate.begun.acquire(timeout=PLENTY_S)
    writer = in_background(lambda: done.extend(threads.run_writes(abs, [-4], PLENTY_S)))
    writer.join(0.2)
    assert writer.is_alive()
    gate.may_end.set()
    writer.join(PLENTY_S)
    assert done[0].result == 4
    readers.join(PLENTY_S)
    assert threads.close(PLENTY_S) == 0


def test_at_the_deadline_waiting_jobs_are_cancelled_and_running_ones_settle_later(threads):
    gate = Gate()
    jobs = threads.run_reads(gate, range(6), 0.2)
    settled = [job.settled.is_set() for job in jobs]
    assert settled == [False, False, True, True, True, True]
    gate.may_end.set()
    assert all(job.settled.wait(PLENTY_S) for job in jobs)
    gate.may_end.clear()
    assert threads.run_reads(abs, [-1], PLENTY_S)[0].result == 1
    assert gate.begun.acquire(blocking=False)
    assert gate.begun.acquire(blocking=False)
    assert not gate.begun.acquire(blocking=False)  # what was cancelled never began


def test_reads_that_are_cancelled_hold_up_no_write():
    threads, gate, done = IoThreads(1, 1, max_write_wait_s=PLENTY_S), Gate(), []
    stuck = in_background(threads.run_reads, gate, [1], PLENTY_S)
    assert gate.begun.acquire(timeout=PLENTY_S)
    waiting = in_background(threads.run_reads, gate, [2], 0.2)
    writer = in_background(lambda: done.extend(threads.run_writes(abs, [-4], PLENTY_S)))
    waiting.join(PLENTY_S)
    writer.join(PLENTY_S / 2)
    assert done[0].result == 4
    gate.may_end.set()
    stuck.join(PLENTY_S)
    assert threads.close(PLENTY_S) == 0


def test_jobs_done_by_the_deadline_keep_their_results(threads):
    gate = Gate()

    def work(number):
        return gate(number) if number >= 2 else number

    jobs = threads.run_reads(work, range(4), 0.2)
    assert [job.result for job in jobs if job.settled is None] == [0, 1]
    gate.may_end.set()
    assert all(job.settled.wait(PLENTY_S) for job in jobs[2:])


def test_work_that_raises_is_logged_and_costs_no_thread(threads, caplog):
    def fail(number):
        raise RuntimeError(f"no {number}")

    jobs = threads.run_reads(fail, range(10), PLENTY_S)
    assert [(job.result, job.settled) for job in jobs] == [(None, None)] * 10
    assert "no 7" in caplog.text
    assert threads.run_reads(abs, [-1], PLENTY_S)[0].result == 1


def test_closing_waits_for_what_was_given_and_counts_what_is_stuck():
    threads, gate = IoThreads(1, 1), Gate()
    reader = in_background(threads.run_reads, gate, range(3), PLENTY_S)
    assert gate.begun.acquire(timeout=PLENTY_S)
    assert threads.close(0.05) == 3
    with pytest.raises(StoreError, match="closed"):
        threads.run_writes(abs, [1], PLENTY_S)
    gate.may_end.set()
    assert threads.close(PLENTY_S) == 0
    reader.join(PLENTY_S)


def test_closed_threads_end():
    threads = IoThreads(3, 2)
    assert threads.close(PLENTY_S) == 0
    for thread in threads._threads:
        thread.join(PLENTY_S)
        assert not thread.is_alive()


def test_an_io_priority_holds_for_the_calling_thread_alone():
    def ioprio_get():
        number = {"x86_64": 252, "aarch64": 31}[platform.machine()]
        return ctypes.CDLL(None).syscall(number, 1, 0)

    done = []

    def lower():
        done.append(set_io_priority(7))
        done.append(ioprio_get())

    before = ioprio_get()
    in_background(lower).join(PLENTY_S)
    assert done == [True, 2 << 13 | 7]
    assert ioprio_get() == before != done[1]


def test_the_caller_sees_each_job_as_it_ends_while_others_still_run(threads):
    gate, seen = Gate(), []

    def work(number):
        return gate(number) if number == 3 else number

    def look(job):
        seen.append(job.result)
        if len(seen) == 3:
            gate.may_end.set()

    jobs = threads.run_reads(work, range(4), PLENTY_S, look)
    assert sorted(seen) == [job.result for job in jobs] == [0, 1, 2, 3]
