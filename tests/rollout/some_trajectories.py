"""Trajectories for tests: one built by hand, and hypothesis strategies for any."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from engines.types import PHASES, FinishReason, PhaseSeconds
from rollout.types import Segment, StopReason, Trajectory, Turn

TURN = Turn(
    segment=0,
    prompt_tokens=100,
    hit_tokens=64,
    output_tokens=5,
    tool_tokens=3,
    finish_reason=FinishReason.STOP_ID,
    weights_version=0,
    started_s=0.0,
    ttft_s=0.2,
    ttst_s=0.25,
    tpot_s=0.05,
    tool_s=0.1,
    phases=PhaseSeconds(prefill=0.2, decode=0.2, tool=0.1),
)


def trajectory(started_s: float, phases: PhaseSeconds, **changes: object) -> Trajectory:
    """One of a single segment and a single turn, as long as its phases."""
    segment = Segment()
    segment.append_given([1, 2, 3])
    segment.append_sampled([4, 5], [-0.5, -0.25], weights_version=0)
    made = Trajectory(
        task_id="task",
        group_id="0/task",
        sample_index=0,
        segments=(segment,),
        turns=(TURN,),
        reward=1.0,
        stop_reason=StopReason.DONE,
        started_s=started_s,
        duration_s=phases.total,
        phases=phases,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


seconds = st.floats(0, 1e4)
int32 = st.integers(-(2**31), 2**31 - 1)
phase_seconds = st.builds(PhaseSeconds, **dict.fromkeys(PHASES, seconds))


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    prompt_tokens = draw(st.integers(1, 10**6))
    return Turn(
        segment=draw(st.integers(0, 3)),
        prompt_tokens=prompt_tokens,
        hit_tokens=draw(st.integers(0, prompt_tokens - 1)),
        output_tokens=draw(st.integers(1, 10**4)),
        tool_tokens=draw(st.integers(0, 10**4)),
        finish_reason=draw(st.sampled_from(FinishReason)),
        weights_version=draw(st.integers(0, 1000)),
        started_s=draw(seconds),
        ttft_s=draw(seconds),
        ttst_s=draw(st.none() | seconds),
        tpot_s=draw(st.none() | seconds),
        tool_s=draw(seconds),
        phases=draw(phase_seconds),
        recomputed_tokens=draw(st.integers(0, 10**6)),
        renewed_tokens=draw(st.integers(0, 10**6)),
        older_kv_tokens=draw(st.integers(0, 10**6)),
        num_attempts=draw(st.integers(1, 3)),
    )


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    segment = Segment()
    for _ in range(draw(st.integers(0, 3))):
        segment.append_given(draw(st.lists(int32, max_size=5)))
        sampled = draw(st.lists(st.tuples(int32, st.floats(max_value=0, width=32)), max_size=5))
        version = draw(st.integers(0, 100))
        segment.append_sampled([i for i, _ in sampled], [p for _, p in sampled], version)
    return segment


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    phases = draw(phase_seconds)
    return Trajectory(
        task_id=draw(st.text()),
        group_id=draw(st.text()),
        sample_index=draw(st.integers(0, 64)),
        segments=tuple(draw(st.lists(segments(), max_size=3))),
        turns=tuple(draw(st.lists(turns(), max_size=4))),
        reward=draw(st.floats(allow_nan=False)),
        stop_reason=draw(st.sampled_from(StopReason)),
        started_s=draw(seconds),
        duration_s=phases.total,
        phases=phases,
        error=draw(st.none() | st.text()),
    )
