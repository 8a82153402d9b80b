from __future__ import annotations

import math

import pytest

from engines.scheduling.recent_reads import RecentReads
from engines.types import NodeId

A, B = NodeId("a"), NodeId("b")


def test_reads_fade_with_the_memory() -> None:
    recent = RecentReads(memory_s=2.0)
    recent.note(A, 100, now_s=10.0)
    recent.note(A, 50, now_s=12.0)
    assert recent.tokens(A, 12.0) == pytest.approx(100 / math.e + 50)
    assert recent.tokens(A, 14.0) == pytest.approx((100 / math.e + 50) / math.e)
    assert recent.tokens(B, 14.0) == 0.0


def test_reads_that_move_away_count_no_more_and_never_below_nothing() -> None:
    recent = RecentReads(memory_s=2.0)
    recent.note(A, 100, now_s=0.0)
    recent.note(A, -40, now_s=0.0)
    assert recent.tokens(A, 0.0) == 60
    recent.note(A, -100, now_s=0.0)
    assert recent.tokens(A, 0.0) == 0.0


def test_without_a_memory_nothing_is_remembered() -> None:
    recent = RecentReads(memory_s=0.0)
    recent.note(A, 100, now_s=0.0)
    assert recent.tokens(A, 0.0) == recent.tokens(A, 1.0) == 0.0
