"""How even storage NICs are used, window by window; and what CPU a process tree took."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from rollout.cpu_use import CpuReading, read_cpu
from rollout.snic_meter import SnicMeter, snic_figures


def test_windows_with_little_traffic_say_nothing_about_balance():
    figures = snic_figures([(0, 0), (100, 100), (150, 50), (5, 0)], [1.0] * 4)
    assert figures["max_over_avg"] == (1.0 + 1.5) / 2
    assert figures["bytes"][3] == [5, 0]


def test_a_window_that_the_end_cuts_short_is_told_and_not_judged():
    figures = snic_figures([(100, 100), (80, 0)], [1.0, 0.3])
    assert figures["max_over_avg"] == 1.0
    assert figures["bytes"] == [[100, 100], [80, 0]]
    assert figures["lengths_s"] == [1.0, 0.3]


def test_what_is_read_before_the_first_window_ends_counts():
    read = 0

    async def reading() -> tuple[int, ...]:
        return (read, 2 * read)

    async def play() -> list[list[int]]:
        nonlocal read
        async with SnicMeter(reading) as meter:
            read = 7
        return meter.figures()["bytes"]

    assert asyncio.run(play()) == [[7, 14]]


def test_without_traffic_there_is_no_figure():
    assert snic_figures([], [])["max_over_avg"] is None
    assert snic_figures([(0, 0)], [1.0])["max_over_avg"] is None


def test_cpu_of_children_counts():
    before = read_cpu()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True, timeout=60)
    assert read_cpu().cpu_s - before.cpu_s > 0.05
    assert 0 <= read_cpu().use_since(before) <= 1


def test_no_time_is_no_use():
    assert CpuReading(5.0, 1.0).use_since(CpuReading(4.0, 1.0)) == 0.0
