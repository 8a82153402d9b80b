from __future__ import annotations

import pytest

from engines.scheduling.estimate import PromptWork
from engines.scheduling.prefill_times import PrefillTimes
from engines.scheduling.read_sides import SideLoad
from engines.types import EngineId, RequestId

A, B, C = EngineId("a"), EngineId("b"), EngineId("c")
PER_TOKEN, TWICE = (0.0, 1.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0)
TEN = PromptWork.of(0, 10)


def test_without_a_profile_nothing_is_known_until_an_engine_has_computed() -> None:
    times = PrefillTimes(PER_TOKEN, None)
    times.learn(A, ())
    assert not times.knows
    times.learn(A, TWICE)
    assert times.knows
    assert times.predict_s(TEN) == 20.0


def test_an_engine_goes_by_what_it_has_told_and_others_by_the_mean() -> None:
    times = PrefillTimes(PER_TOKEN, PER_TOKEN)
    assert times.knows
    assert times.predict_s(TEN, A) == 10.0
    for engine_id, told in ((A, PER_TOKEN), (B, PER_TOKEN), (A, TWICE)):
        times.learn(engine_id, told)
    assert [times.predict_s(TEN, engine_id) for engine_id in (A, B, C)] == pytest.approx([20.0, 10.0, 15.0])
    assert times.predict_s(TEN) == pytest.approx(15.0)


def test_what_is_begun_keeps_its_engine_busy_until_it_is_ended() -> None:
    times = PrefillTimes(PER_TOKEN, PER_TOKEN)
    for name in ("x", "y"):
        times.begin(A, RequestId(name), TEN)
    assert (times.busy_s(A), times.busy_s(B)) == (20.0, 0.0)
    for _ in range(2):
        times.end(A, RequestId("x"))
    assert times.busy_s(A) == 10.0


def test_an_engine_that_is_busy_anyway_has_more_loaded() -> None:
    """A block of 4 tokens takes 4 s to compute and 8 s to load."""
    times, sides = PrefillTimes(PER_TOKEN, PER_TOKEN), (SideLoad(0.0, 0.5),)
    blocks = [times.blocks_to_load(A, 10, 41, sides, block_bytes=4, block_tokens=4)]
    times.begin(A, RequestId("before"), PromptWork.of(0, 40))
    blocks.append(times.blocks_to_load(A, 10, 41, sides, block_bytes=4, block_tokens=4))
    assert blocks == [0, 5]
