"""What is shown while a run goes on, on a terminal and off it."""

from __future__ import annotations

import io
import os
import pty
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TextIO

import pytest

from rollout.glance import AgentNow
from rollout.progress import Progress, StepState

STATE = StepState(
    step=0,
    num_steps=2,
    num_trajectories=16,
    num_done=0,
    num_running=16,
    num_turns=0,
    slowest=AgentNow("0/p3/1", running_s=2.0, phase="kv_load", phase_s=1.0, num_turns=3),
)
HALF = replace(STATE, num_done=8, num_running=8, num_turns=20)
ALL = replace(STATE, num_done=16, num_running=0, num_turns=40, slowest=None)


class HandClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class GonePipe(io.StringIO):
    """A stream whose reader has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@contextmanager
def terminal() -> Iterator[tuple[TextIO, list[str]]]:
    """A pseudo terminal of 120 columns, and what was shown on it once closed."""
    reader, writer = pty.openpty()
    shown: list[str] = []
    stream = os.fdopen(writer, "w")
    try:
        yield stream, shown
        stream.flush()
        os.set_blocking(reader, False)
        shown.append(os.read(reader, 1 << 20).decode())
    finally:
        stream.close()
        os.close(reader)


def test_a_file_gets_plain_lines_with_the_time(clock):
    stream = io.StringIO()
    with Progress.open(stream, clock=clock) as progress:
        progress.phase("starting Ray")
        clock.now_s += 3.25
        progress.phase("loading the model")
    assert stream.getvalue() == "[    0.0 s] starting Ray\n[    3.2 s] loading the model\n"


def test_a_steps_line_tells_counts_time_left_and_the_slowest(clock):
    stream = io.StringIO()
    progress = Progress.open(stream, clock=clock)
    progress.step(STATE)
    clock.now_s += 30.0
    progress.step(HALF)
    clock.now_s += 40.0
    progress.step(ALL)
    assert stream.getvalue().splitlines() == [
        "[    0.0 s] rollout 1/2: 0/16 done, 16 running, 0 turns, slowest 0/p3/1 in kv_load after 2 s",
        "[   30.0 s] rollout 1/2: 8/16 done, 8 running, 20 turns, about 30 s left, "
        "slowest 0/p3/1 in kv_load after 2 s",
        "[   70.0 s] rollout 1/2: 16/16 done, 0 running, 40 turns",
    ]


def test_many_updates_make_few_lines_but_the_last_is_always_told(clock):
    stream = io.StringIO()
    progress = Progress.open(stream, clock=clock)
    for turns in range(100):
        progress.step(replace(STATE, num_turns=turns))
        clock.now_s += 0.1
    progress.step(ALL)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "16/16 done" in lines[-1]


def test_each_step_begins_with_a_line_and_a_count_of_its_own(clock):
    stream = io.StringIO()
    progress = Progress.open(stream, clock=clock)
    progress.step(STATE)
    clock.now_s += 1.0
    progress.step(replace(STATE, step=1))
    clock.now_s += 10.0
    progress.step(replace(HALF, step=1))
    lines = stream.getvalue().splitlines()
    assert lines[1].startswith("[    1.0 s] rollout 2/2: 0/16 done")
    assert "about 10 s left" in lines[2]


@pytest.mark.parametrize(
    ("elapsed_s", "num_done", "left_s"),
    [(10.0, 0, None), (10.0, 4, 30.0), (10.0, 8, 10.0), (10.0, 16, 0.0)],
)
def test_time_left_follows_the_rate_so_far(elapsed_s, num_done, left_s):
    assert replace(STATE, num_done=num_done).left_s(elapsed_s) == left_s


def test_time_left_goes_by_turns_where_it_is_known_how_many_there_will_be():
    state = replace(STATE, num_turns=200, num_turns_expected=400, num_turns_before=100)
    assert state.left_s(50.0) == 100.0
    assert "200/400 turns" in state.counts
    assert replace(state, num_turns=100).left_s(50.0) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_long_times_are_said_as_people_say_them(seconds, words):
    slowest = AgentNow("0/a/0", running_s=seconds, phase="tool", phase_s=0.0, num_turns=0)
    assert replace(STATE, slowest=slowest).words_slowest == f"0/a/0 in tool after {words}"


def test_quiet_writes_nothing(clock):
    stream = io.StringIO()
    with Progress.open(stream, quiet=True, clock=clock) as progress:
        progress.phase("starting Ray")
        progress.step(STATE)
    assert stream.getvalue() == ""


def test_a_reader_that_goes_away_does_not_end_the_run(clock):
    with Progress.open(GonePipe(), clock=clock) as progress:
        progress.phase("starting Ray")
        progress.step(STATE)


def test_a_terminal_gets_a_bar_and_keeps_a_line_of_what_is_over(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal() as (stream, shown):
        with Progress.open(stream, clock=time.monotonic) as progress:
            progress.phase("starting Ray [1 node]")
            progress.step(HALF)
        assert not shown
    assert "\x1b[" in shown[0]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown[0])
    assert re.search(r"8/16 done, 8 running, 20 turns, about \d+ s left", plain)
    assert "━" in plain
    kept = [line.strip() for line in plain.replace("\r", "\n").splitlines()]
    assert any(re.fullmatch(r"\d+\.\d s  starting Ray \[1 node\]", line) for line in kept)
    assert any(re.fullmatch(r"\d+\.\d s  rollout 1/2", line) for line in kept)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as (stream, shown), Progress.open(stream) as progress:
        progress.phase("starting Ray")
    assert "\x1b" not in shown[0]
    assert "starting Ray" in shown[0]
