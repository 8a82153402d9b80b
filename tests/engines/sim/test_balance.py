"""How evenly work was spread, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from engines.sim.balance import attention_max_over_avg, snic_max_over_avg
from engines.sim.result import ForwardTable, SnicUse


def use(*windows: tuple[float, ...]) -> SnicUse:
    read = np.array(windows, np.float64)
    return SnicUse(read, np.zeros_like(read))


def forwards(*rounds: tuple[float, int, float, float]) -> ForwardTable:
    """(when it began, members, longest attention, attention of all)"""
    began, members, longest, whole = (np.array(column) for column in zip(*rounds, strict=True))
    zeros = np.zeros(len(rounds), np.int64)
    return ForwardTable(zeros, began, began * 0 + 1, members, zeros, zeros, zeros, longest, whole)


def test_even_reads_are_1_and_one_nic_alone_is_as_many_as_there_are():
    assert snic_max_over_avg(use((5, 5, 5), (7, 7, 7))) == pytest.approx(1.0)
    assert snic_max_over_avg(use((9, 0, 0))) == pytest.approx(3.0)


def test_windows_with_next_to_no_reads_tell_nothing():
    assert snic_max_over_avg(use((5, 5), (5, 5), (0.1, 0))) == pytest.approx(1.0)


def test_no_reads_are_no_figure():
    assert snic_max_over_avg(use((0, 0))) is None


def test_attention_is_the_longest_over_the_mean_of_those_who_computed():
    assert attention_max_over_avg(forwards((0, 2, 3.0, 4.0))) == pytest.approx(1.5)


def test_rounds_of_one_gpu_and_late_rounds_are_left_out():
    table = forwards((0, 1, 3.0, 3.0), (1, 2, 2.0, 4.0), (9, 2, 4.0, 4.0))
    assert attention_max_over_avg(table, until_s=5) == pytest.approx(1.0)
    assert attention_max_over_avg(forwards((0, 1, 3.0, 3.0))) is None
