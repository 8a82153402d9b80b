"""The arithmetic of one direction of a NIC, on an injected clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.nic_timeline import BURST_S, MODEL_SHARE, ROW_LENGTH, NicTimeline
from kvstore.traffic import TrafficClass

KV, MODEL = TrafficClass.KV, TrafficClass.MODEL
RATE = 1000.0
NOW = 50.0


def timeline(rate: float | None = RATE, *, classes: bool = True) -> NicTimeline:
    made = NicTimeline(np.zeros(ROW_LENGTH))
    made.set_rate(rate)
    made.set_classes(classes)
    return made


def book(nic: NicTimeline, nbytes: int, traffic_class: TrafficClass, now_s: float = NOW):
    booking = nic.book(nbytes, traffic_class, since_s=now_s, now_s=now_s, latest_s=math.inf)
    assert booking is not None
    return booking


def test_moves_of_one_class_follow_each_other():
    nic = timeline()
    finishes = [nic.due(book(nic, 100, KV)) for _ in range(3)]
    assert finishes == pytest.approx([NOW - BURST_S + seconds for seconds in (0.1, 0.2, 0.3)])


def test_an_idle_nic_saves_up_no_more_than_a_burst():
    nic = timeline()
    book(nic, 100, KV)
    assert nic.due(book(nic, 100, KV, NOW + 60)) == pytest.approx(NOW + 60 - BURST_S + 0.1)


def test_time_a_waiter_slept_too_long_is_not_lost_to_it():
    nic = timeline()
    first = book(nic, 100, KV)
    late = nic.book(100, KV, since_s=first.finish_s, now_s=first.finish_s + 0.05, latest_s=math.inf)
    assert late is not None
    assert late.finish_s == pytest.approx(first.finish_s + 0.1)


def test_model_traffic_goes_first_and_pushes_back_kv_that_waits():
    nic = timeline()
    kv = book(nic, 1000, KV)
    before_s = nic.due(kv)
    model = book(nic, 100, MODEL)
    assert nic.due(model) == pytest.approx(NOW + 0.1 / MODEL_SHARE)
    assert nic.due(kv) == pytest.approx(before_s + 0.1)


@pytest.mark.parametrize("classes", [True, False])
def test_model_traffic_takes_its_time_on_an_idle_nic_too(classes):
    nic = timeline(classes=classes)
    assert nic.due(book(nic, 100, MODEL)) == pytest.approx(NOW + 0.1)


def test_kv_keeps_its_percent_of_a_nic_full_of_model_traffic():
    nic = timeline()
    kv = book(nic, 10, KV)
    for _ in range(100):
        model = book(nic, 100, MODEL)
    # 10 bytes of KV and 10,000 of MODEL: both are through when the NIC has carried 10,010.
    assert nic.due(kv) == pytest.approx(NOW - BURST_S + 10.01)
    assert nic.due(model) == pytest.approx(NOW + 10 / MODEL_SHARE)


def test_kv_that_comes_after_model_traffic_waits_for_it():
    nic = timeline()
    model = book(nic, 100, MODEL)
    assert nic.due(book(nic, 100, KV)) == pytest.approx(nic.due(model) + 0.1)


def test_without_classes_model_traffic_waits_its_turn():
    nic = timeline(classes=False)
    kv = book(nic, 1000, KV)
    assert nic.due(book(nic, 100, MODEL)) == pytest.approx(nic.due(kv) + 0.1)
    assert nic.due(kv) == kv.finish_s


def test_what_would_come_too_late_is_refused_and_costs_nothing():
    nic = timeline()
    book(nic, 100, KV)
    assert nic.book(100, KV, since_s=NOW, now_s=NOW, latest_s=NOW + 0.15) is None
    assert nic.due(book(nic, 50, KV)) == pytest.approx(NOW - BURST_S + 0.15)
    assert nic.use(KV, NOW + 9).moves == 2


def test_a_new_rate_holds_for_what_is_booked_from_then_on():
    nic = timeline()
    first = book(nic, 100, KV)
    nic.set_rate(RATE / 10)
    assert nic.due(first) == first.finish_s
    assert nic.due(book(nic, 100, KV)) == pytest.approx(first.finish_s + 1.0)


def test_no_limit_takes_no_time():
    nic = timeline(None)
    assert nic.due(book(nic, 1 << 40, KV)) <= NOW
    assert nic.piece_bytes() is None
    assert nic.use(KV, NOW).nbytes == 1 << 40


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(ValueError, match="must be > 0"):
        timeline().set_rate(rate)


def test_use_tells_what_has_passed_at_any_instant():
    nic = timeline()
    book(nic, 1000, KV)
    start_s = NOW - BURST_S
    assert [nic.use(KV, start_s + s).nbytes for s in (0.25, 0.5, 2)] == pytest.approx([250, 500, 1000], abs=1)
    assert nic.use(MODEL, NOW).nbytes == 0


def test_use_tells_how_long_moves_waited_for_others():
    nic = timeline()
    for _ in range(3):
        book(nic, 100, KV)
    assert nic.use(KV, NOW).waited_s == pytest.approx(0.1 + 0.2 - 2 * BURST_S)


moves = st.lists(
    st.tuples(st.integers(1, 5000), st.sampled_from([KV, MODEL]), st.floats(0, 3)), min_size=1, max_size=40
)


@given(moves, st.booleans())
def test_a_nic_never_carries_more_than_its_rate_allows(moves, classes):
    nic, now_s = timeline(classes=classes), NOW
    bookings = []
    for nbytes, traffic_class, later_s in moves:
        now_s += later_s
        bookings.append(book(nic, nbytes, traffic_class, now_s))
    total = sum(nbytes for nbytes, _, _ in moves)
    first_s = NOW + moves[0][2] - BURST_S
    assert max(nic.due(booking) for booking in bookings) >= first_s + total / RATE - 1e-6


@given(moves, st.booleans())
def test_a_nic_with_something_to_carry_is_never_idle(moves, classes):
    nic = timeline(classes=classes)
    bookings = [book(nic, nbytes, traffic_class) for nbytes, traffic_class, _ in moves]
    total = sum(nbytes for nbytes, _, _ in moves)
    assert max(nic.due(b) for b in bookings) <= NOW + total / RATE / MODEL_SHARE + 1e-6


@given(moves, st.booleans())
def test_in_the_end_all_of_it_has_passed(moves, classes):
    nic = timeline(classes=classes)
    for nbytes, traffic_class, _ in moves:
        book(nic, nbytes, traffic_class)
    for each in (KV, MODEL):
        assert nic.use(each, NOW + 1e6).nbytes == sum(n for n, of, _ in moves if of is each)
