"""A node's NICs, shared by several real processes.

No test asks for speed: what takes time here are rates, and a rate is far below what the machine can do.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from kvstore.errors import StagingError
from kvstore.limiter import NodeLimiter, carry
from kvstore.traffic import TrafficClass
from tests.kvstore.limiter_process import limiter_processes

KV, MODEL = TrafficClass.KV, TrafficClass.MODEL
RATE = 50e6
ROUNDS = 4
"""A busy machine may wake a process late; a round in which it did does not count against the limiter."""


@pytest.fixture
def limiter():
    limiter = NodeLimiter.create(
        "node", snic_bytes_per_s=RATE, cnic_bytes_per_s=4 * RATE, num_cnics=2, traffic_classes=True
    )
    with closing(limiter):
        yield limiter


def carry_now(lanes, nbytes, traffic_class=KV, deadline_s=60.0):
    since_s = time.monotonic()
    return carry(lanes, nbytes, traffic_class, since_s=since_s, end_s=since_s + deadline_s)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_together_keep_the_rate_within_3_percent_and_share_it_evenly(limiter, num_processes):
    each = int(RATE * 1.2) // num_processes
    ideal_s = each * num_processes / RATE
    errors, spreads = [], []
    with limiter_processes(limiter.handle, num_processes) as processes:
        for _ in range(ROUNDS):
            start_s = time.monotonic() + 0.1
            for process in processes:
                process.carry(each, start_s)
            answers = [process.answer() for process in processes]
            assert [carried for carried, _ in answers] == [each] * num_processes
            took_s = [end_s - start_s for _, end_s in answers]
            errors.append(max(took_s) / ideal_s - 1)
            spreads.append(1 - min(took_s) / max(took_s))
            assert errors[-1] > -0.03
            if errors[-1] < 0.03 and spreads[-1] < 0.1:
                return
    pytest.fail(f"rates off by {errors}, ends apart by {spreads}")


def test_a_process_killed_while_it_moves_bytes_leaves_the_nic_to_the_others(limiter):
    lane = [limiter.snic.inbound]
    with limiter_processes(limiter.handle, 2) as (victim, _):
        victim.carry(int(60 * RATE), time.monotonic())
        assert carry_now(lane, int(0.1 * RATE)) == int(0.1 * RATE)
        victim.kill()
        moved = int(0.2 * RATE)
        before = limiter.snic.inbound.use(KV).nbytes
        assert carry_now(lane, moved) == moved
        passed = limiter.snic.inbound.use(KV).nbytes - before
        # The dead one's last piece, at most; alive it would have had half of the NIC.
        assert passed <= moved + 2 * limiter.snic.inbound.piece_bytes()


def test_a_killed_holder_of_the_lock_leaves_it_free(limiter):
    with limiter_processes(limiter.handle, 1) as (holder,):
        holder.hold_lock()
        holder.kill()
        assert carry_now([limiter.snic.inbound], 1000) == 1000


def test_a_holder_of_the_lock_that_stands_still_does_not_stop_the_others(limiter):
    with limiter_processes(limiter.handle, 1) as (holder,):
        holder.hold_lock()
        assert carry_now([limiter.snic.inbound], 1000) == 1000
        assert limiter.snic.inbound.use(KV).moves == 1


def test_threads_of_one_process_share_a_nic_too(limiter):
    each, num = int(0.1 * RATE), 4
    since_s = time.monotonic()
    threads = [threading.Thread(target=carry_now, args=([limiter.snic.inbound], each)) for _ in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert time.monotonic() - since_s >= 0.97 * num * each / RATE
    assert limiter.snic.inbound.use(KV).nbytes == num * each


def test_bytes_that_would_come_after_the_deadline_are_neither_waited_for_nor_charged(limiter):
    carried = carry_now([limiter.snic.inbound], int(100 * RATE), deadline_s=0.2)
    assert 0 < carried <= 0.21 * RATE
    assert limiter.snic.inbound.use(KV).nbytes == carried


def test_a_move_takes_as_long_as_its_slowest_end(limiter):
    slow, fast = limiter.cnics[0].outbound, limiter.cnics[1].inbound
    slow.set_rate(RATE / 10)
    since_s = time.monotonic()
    assert carry_now([slow, fast], int(RATE / 100)) == int(RATE / 100)
    assert time.monotonic() - since_s >= 0.097
    assert slow.use(KV).nbytes == fast.use(KV).nbytes == int(RATE / 100)


def test_a_rate_can_be_cut_by_another_process_in_the_middle_of_a_move(limiter):
    theirs = NodeLimiter.attach(limiter.handle)
    with closing(theirs):
        done = threading.Event()
        mover = threading.Thread(
            target=lambda: (carry_now([limiter.snic.inbound], int(RATE), deadline_s=0.5), done.set())
        )
        mover.start()
        while limiter.snic.inbound.use(KV).moves < 2:
            assert not done.wait(0.001)
        theirs.snic.set_rate(RATE / 100)
        mover.join(60)
    assert done.is_set()
    assert limiter.snic.inbound.use(KV).nbytes < 0.3 * RATE


def test_model_traffic_passes_kv_that_waits(limiter):
    lane = limiter.cnics[0].outbound
    kv = threading.Thread(target=carry_now, args=([lane], int(2 * RATE)))
    kv.start()
    while lane.use(KV).moves == 0:
        time.sleep(0.001)
    assert carry_now([lane], 10_000, MODEL) == 10_000
    assert lane.use(MODEL).waited_s < 0.001
    kv.join(60)


def test_nobody_can_join_a_limiter_whose_owner_is_gone(limiter):
    limiter.close()
    with pytest.raises(StagingError, match="gone"):
        NodeLimiter.attach(limiter.handle)
