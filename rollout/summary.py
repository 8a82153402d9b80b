"""The shape of summary.json. How its numbers come about is told in metrics.py.

A figure that nothing was measured for is null, never 0.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


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
    renewed: int
    """Prompt tokens, in `miss` too, that older weights had computed: the price of kv_on_update=recompute."""
    over_older_kv: int
    """Output tokens sampled over KV of older weights: only with kv_on_update=keep."""


class ReadBytes(TypedDict):
    prefill_side: int
    decode_side: int
    dram: int
    ahead: int
    """Before anybody asked, while agents waited; what of it was used came from `dram`."""


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
    phase: str
    """Where most of its time went."""
    phase_s: float


class Dropped(TypedDict):
    """Trajectories that were ended because enough of their group had ended well (controller.oversample)."""

    count: int
    tokens_over_kept: float | None
    """Their mean length when they were ended over that of the kept ones: above 1, what is kept is biased to
    the short, at least by so much."""


class Figures(TypedDict):
    """What is told of a step and of a whole job alike."""

    jct_s: float
    num_trajectories: int
    outcomes: dict[str, int]
    num_turns: int
    num_attempts: int
    reward_mean: float | None
    tokens: Tokens
    older_kv_share: float | None
    """Of the output, what was sampled over KV of older weights."""
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
    replaced: int
    """Failed trajectories that were played again (controller.group_policy=replace) and are not counted
    else."""
    dropped: Dropped
    slowest: Slowest | None


class SnicFigures(TypedDict):
    """What was read through the storage NICs in windows of about a second."""

    window_s: float
    nodes: NotRequired[list[str]]
    """In the order of each window's `bytes`."""
    bytes: list[list[int]]
    """Of each node, read, in each window."""
    lengths_s: list[float]
    """How long each window was in truth."""
    max_over_avg: float | None
    """The busiest NIC over the mean of all, averaged over the windows in which enough was read to say."""


class RateFigures(TypedDict):
    """In bytes a second as they are limited here; None: no limit."""

    snic_bytes_per_s: float | None
    cnic_bytes_per_s: float | None


class AttentionFigures(TypedDict):
    """How even attention was across a group of prefill engines that compute in rounds."""

    rounds: int
    whole_rounds: int
    """In which every engine took part."""
    max_over_avg: float | None
    """The longest attention over the mean of the group, averaged over whole rounds."""
    mean_s: float | None
    """Attention of an engine in a whole round."""


class DecodeFigures(TypedDict):
    """Decode steps of paced engines; a mean over tokens, so a step counts once for each of its rows."""

    steps: int
    rows_mean: float | None
    modelled_tpot_s: float | None
    """What the model says the steps take."""
    step_tpot_s: float | None
    """What they took."""


class SloFigures(TypedDict):
    """Whether the run met the paper's limits, divided by time_scale."""

    ttft_limit_s: float
    tpot_limit_s: float
    met: bool | None


class ReplayFigures(TypedDict):
    """What was replayed, and how. Scales are None where engines run a model."""

    trace: str
    sessions: int
    """In the trace."""
    sessions_cut: int
    """Cut or left out, as a context would not fit."""
    agents: int
    trace_window: int | None
    setting: str | None
    model_profile: str | None
    scale: float | None
    effective_scale: float | None
    """What bytes per token were divided by in truth."""
    time_scale: float | None
    tool_wait_scale: float
    arrivals: str
    agents_per_s: float | None
    rates: RateFigures
    store_bytes_expected: int | None
    oracle_s_estimated: float | None
    """The least time the replay takes where no byte is moved: a lower bound."""
    history_tokens: NotRequired[int]
    """Tokens whose KV was put into the store before the replay began."""
    verified_bytes: NotRequired[int]
    """KV bytes that paced engines checked; a wrong one fails the run."""
    cpu_use: NotRequired[float]
    """Share of this machine's cores, 0..1, that the replay took."""
    snic: NotRequired[SnicFigures]
    attention: NotRequired[AttentionFigures]
    """Of paced prefill engines with engines.group_lockstep."""
    decode: NotRequired[DecodeFigures]
    """Of paced engines."""
    slo: NotRequired[SloFigures]


class ResumedFigures(TypedDict):
    """What a resumed run went on from. Its KV figures are of the last life alone."""

    step: int
    elapsed_s: float
    """What the step's clock showed when it was cut off: the JCT counts on from there."""
    ended: int
    """Trajectories that had ended and came back as they were."""
    continued: int
    """Trajectories that went on from their last finished turn."""
    continued_turns: int
    """Turns they had."""
    begun_anew: int
    """Trajectories that had turns and lost them, as their environment answered otherwise than before."""
    torn_bytes: int
    """Of the journal's last record, which was not whole."""


class SimulationFigures(TypedDict):
    """What was simulated, at full size, and what only a simulation knows."""

    cluster: dict[str, Any]
    """engines.sim.spec.SimCluster: nodes, rates in bytes a second, buffers in bytes."""
    model_profile: str
    origins: dict[str, str]
    """Of each number of the profile: measured, derived or assumed."""
    token_bytes: int
    layerwise: bool
    oracle: bool
    sharing: str
    horizon_s: float | None
    agents_finished: int
    resources: dict[str, float]
    """Share of what each kind of link, and the prefill GPUs, could have done; the most used first."""
    bottleneck: str
    snic_max_over_avg_by_second: float | None
    attention_max_over_avg: float | None
    attention_max_over_avg_early: float | None
    """Over the first 5 % of the run."""
    prompts_per_forward: float | None
    """Of a GPU that computes, as the next."""
    new_tokens_per_forward: float | None
    rows_per_decode_step: float | None
    mean_context_tokens: float | None
    """Of a turn's prompt."""
    moved_blocks: int
    events: int
    wall_s: float
    """What simulating took, in real time."""


class JobSummary(Figures):
    """The content of summary.json."""

    job: str
    seed: int
    steps: list[StepFigures]
    timing_s: dict[str, float]
    """What is not in the JCT, such as `train`."""
    replay: ReplayFigures | None
    """Of a replay or a simulation."""
    resumed: ResumedFigures | None
    """Of a resumed run."""
    transport: str
    """How KV moved between nodes, where it was left open too."""
    versions: dict[str, str]
    simulated: bool
    """True where nothing was run: times are virtual."""
    simulation: SimulationFigures | None
