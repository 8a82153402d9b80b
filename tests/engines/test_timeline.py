from __future__ import annotations

from engines.timeline import Timeline
from engines.types import RequestId


def timeline(every: int = 1) -> tuple[Timeline, list[float]]:
    now = [10.0]
    return Timeline("prefill-0-0", every, clock=lambda: now[0], wall_clock=lambda: 1000.0), now


def test_a_span_is_on_its_lane_at_its_time_since_the_epoch():
    drawn, now = timeline()
    started_s = drawn.now_s()
    now[0] += 0.5
    drawn.add("compute", "forward", started_s, prompts=3)
    (span,) = drawn.spans()
    assert (span.process, span.lane, span.name) == ("prefill-0-0", "compute", "forward")
    assert (span.start_s, span.duration_s) == (1000.0, 0.5)
    assert dict(span.details) == {"prompts": 3}


def test_every_process_samples_the_same_turns_and_all_their_attempts():
    here, there = timeline(7)[0], timeline(7)[0]
    turns = [f"0/{task}/{sample}/{turn}" for task in range(20) for sample in range(2) for turn in range(20)]
    chosen = {turn for turn in turns if here.samples(RequestId(turn))}
    assert chosen == {turn for turn in turns if there.samples(RequestId(turn + "#3"))}
    assert len(turns) / 14 < len(chosen) < len(turns) / 4


def test_nothing_is_recorded_unless_asked_for():
    drawn, _ = timeline(every=0)
    drawn.add("compute", "forward", drawn.now_s())
    assert not drawn.is_on
    assert not drawn.samples(RequestId("0/0/0/0"))
    assert drawn.spans() == ()
