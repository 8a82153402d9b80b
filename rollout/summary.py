"""The shape of summary.json. How its numbers come about is told in metrics.py.

A figure that nothing was measured for is null, never 0.
"""

from __future__ import annotations

from typing import TypedDict


class Distribution(TypedDict):
    mean: float | None
    p50: float | None
    p99: float | None


class Tokens(TypedDict):
    """Sums over turns; prompt = hit + miss. A context of n turns is counted n times."""

    prompt: int
    hit: int
    miss: int
    output: int
    recomputed: int
    """Prompt tokens computed again by a turn's later attempts; not in `miss`."""


class ReadBytes(TypedDict):
    prefill_side: int
    decode_side: int
    dram: int


class KVFigures(TypedDict):
    read_bytes: ReadBytes
    written_bytes: int
    snic_max_over_avg: float | None
    """Bytes read through the busiest SNIC over the mean of all; None if nothing was read."""


class Slowest(TypedDict):
    """The trajectory of the longest duration."""

    trajectory_id: str
    turns: int
    tokens: int
    duration_s: float


class Figures(TypedDict):
    """What is told of a step and of a whole job alike."""

    jct_s: float
    num_trajectories: int
    outcomes: dict[str, int]
    num_turns: int
    num_attempts: int
    reward_mean: float | None
    tokens: Tokens
    hit_rate: float | None
    ttft_s: Distribution
    ttst_s: Distribution
    tpot_s: Distribution
    jct_breakdown: dict[str, float]
    trajectory_breakdown_mean: dict[str, float]
    kv: KVFigures


class StepFigures(Figures):
    step: int
    weights_version: int
    tail_frac: float | None
    """Share of the JCT that was left when 90 % of the trajectories were done."""
    slowest: Slowest | None


class JobSummary(Figures):
    """The content of summary.json."""

    job: str
    seed: int
    steps: list[StepFigures]
    timing_s: dict[str, float]
    """What is not in the JCT, such as `train`."""
    versions: dict[str, str]
