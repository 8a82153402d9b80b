"""When a store stops taking blocks, and when it starts again."""

import errno
import logging

import pytest

from kvstore.write_gate import WriteGate

FULL = OSError(errno.ENOSPC, "No space left on device")
QUOTA = OSError(errno.EDQUOT, "Disk quota exceeded")
BROKEN = OSError(errno.EIO, "Input/output error")


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock, caplog):
    caplog.set_level(logging.INFO)
    return WriteGate(clock, retry_s=30.0)


def lines(caplog):
    return [(record.levelname, record.getMessage().split(",")[0]) for record in caplog.records]


STOPPED, GOES_ON = "KV caching stopped", "KV caching goes on"


@pytest.mark.parametrize("error", [FULL, QUOTA])
def test_a_full_disk_is_tried_again_by_one_write_every_retry_s(gate, clock, caplog, error):
    assert gate.admits()
    gate.failed(error)
    assert gate.stopped == str(error)
    assert not gate.admits()
    clock.now_s += 29.9
    assert not gate.admits()
    clock.now_s += 0.1
    assert [gate.admits(), gate.admits()] == [True, False]
    gate.failed(error)
    clock.now_s += 30.0
    assert gate.admits()
    gate.succeeded()
    assert gate.stopped is None
    assert gate.admits()
    assert lines(caplog) == [("WARNING", STOPPED), ("INFO", GOES_ON)]


def test_a_disk_that_is_full_again_is_no_second_warning(gate, clock, caplog):
    gate.failed(FULL)
    clock.now_s += 30.0
    assert gate.admits()
    gate.succeeded()
    gate.failed(FULL)
    assert lines(caplog) == [("WARNING", STOPPED), ("INFO", GOES_ON), ("INFO", STOPPED)]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG])
def test_any_other_error_stops_it_for_good_with_one_warning(gate, clock, caplog, number):
    error = OSError(number, "no")
    gate.failed(error)
    gate.failed(BROKEN)
    gate.failed(FULL)
    clock.now_s += 1e6
    assert not gate.admits()
    gate.succeeded()
    assert gate.stopped == str(error)
    assert lines(caplog) == [("WARNING", STOPPED)]


def test_a_full_disk_that_then_breaks_is_stopped_for_good(gate, clock, caplog):
    gate.failed(FULL)
    clock.now_s += 30.0
    assert gate.admits()
    gate.failed(BROKEN)
    clock.now_s += 1e6
    assert not gate.admits()
    assert gate.stopped == str(BROKEN)
    assert lines(caplog) == [("WARNING", STOPPED)] * 2


def test_a_write_that_began_before_the_disk_was_full_opens_nothing(gate):
    assert gate.admits()
    gate.failed(FULL)
    gate.succeeded()
    assert not gate.admits()
