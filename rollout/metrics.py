"""What a job's trajectories amount to, in numbers. JCT is defined here and nowhere else.

JCT (job completion time) of a rollout step: from the first start to the last finish of its
trajectories. A job's JCT: the sum over its rollout steps; training is not in it and stands beside it.
The breakdown of a step's JCT is that of the trajectory that finished last, with the time before its
own start charged to `queue`, so its parts sum to the JCT.

Pure: no I/O, no clock. Figures that nothing was measured for are None, never 0.
Source of the name JCT and of what is measured: DualPath, arXiv 2602.21548, section 7.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import zip_longest
from operator import add
from statistics import fmean

from engines.types import PhaseSeconds
from rollout.batch import is_usable
from rollout.summary import (
    Distribution,
    Dropped,
    Figures,
    JobSummary,
    KVFigures,
    ReplayFigures,
    ResumedFigures,
    Slowest,
    StepFigures,
)
from rollout.types import Outcome, StopReason, Trajectory

TAIL_STARTS_AT = 0.9
"""Share of a step's trajectories after whose finish the step's tail begins."""


@dataclass(frozen=True, slots=True)
class KVBytes:
    """KV bytes moved, by path. Counters only grow: subtract two readings for what lies between."""

    read_prefill_side: int = 0
    read_decode_side: int = 0
    read_dram: int = 0
    written: int = 0
    snic_bytes: tuple[int, ...] = ()
    """Bytes read through each SNIC."""
    read_ahead: int = 0
    """Into a node's memory before any turn asked for it; a turn that finds it there reads it from DRAM."""

    def __add__(self, more: KVBytes) -> KVBytes:
        return self._combine(more, 1)

    def __sub__(self, earlier: KVBytes) -> KVBytes:
        return self._combine(earlier, -1)

    def _combine(self, more: KVBytes, sign: int) -> KVBytes:
        pairs = zip_longest(self.snic_bytes, more.snic_bytes, fillvalue=0)
        return KVBytes(
            self.read_prefill_side + sign * more.read_prefill_side,
            self.read_decode_side + sign * more.read_decode_side,
            self.read_dram + sign * more.read_dram,
            self.written + sign * more.written,
            tuple(a + sign * b for a, b in pairs),
            self.read_ahead + sign * more.read_ahead,
        )

    def figures(self) -> KVFigures:
        read = sum(self.snic_bytes)
        return {
            "read_bytes": {
                "prefill_side": self.read_prefill_side,
                "decode_side": self.read_decode_side,
                "dram": self.read_dram,
                "ahead": self.read_ahead,
            },
            "written_bytes": self.written,
            "snic_max_over_avg": (max(self.snic_bytes) * len(self.snic_bytes) / read if read else None),
        }


def _samples() -> array[float]:
    return array("d")


@dataclass(frozen=True, slots=True)
class Totals:
    """What adds up: the totals of a job are the sum of its steps'."""

    jct_s: float = 0.0
    jct_breakdown: PhaseSeconds = field(default_factory=PhaseSeconds)
    phases: PhaseSeconds = field(default_factory=PhaseSeconds)
    """Of all trajectories together."""
    reward: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    num_turns: int = 0
    num_attempts: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    output_tokens: int = 0
    recomputed_tokens: int = 0
    renewed_tokens: int = 0
    over_older_kv_tokens: int = 0
    ttft_s: array[float] = field(default_factory=_samples)
    ttst_s: array[float] = field(default_factory=_samples)
    tpot_s: array[float] = field(default_factory=_samples)
    kv: KVBytes = field(default_factory=KVBytes)

    def __add__(self, more: Totals) -> Totals:
        return Totals(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))

    @property
    def num_trajectories(self) -> int:
        return self.outcomes.total()

    def figures(self) -> Figures:
        share = 1 / self.num_trajectories if self.num_trajectories else 0.0
        return {
            "jct_s": self.jct_s,
            "num_trajectories": self.num_trajectories,
            "outcomes": {outcome.value: self.outcomes[outcome.value] for outcome in Outcome},
            "num_turns": self.num_turns,
            "num_attempts": self.num_attempts,
            "reward_mean": self.reward * share if self.num_trajectories else None,
            "tokens": {
                "prompt": self.prompt_tokens,
                "hit": self.hit_tokens,
                "miss": self.prompt_tokens - self.hit_tokens,
                "output": self.output_tokens,
                "recomputed": self.recomputed_tokens,
                "renewed": self.renewed_tokens,
                "over_older_kv": self.over_older_kv_tokens,
            },
            "older_kv_share": self.over_older_kv_tokens / self.output_tokens if self.output_tokens else None,
            "hit_rate": self.hit_tokens / self.prompt_tokens if self.prompt_tokens else None,
            "ttft_s": distribution(self.ttft_s),
            "ttst_s": distribution(self.ttst_s),
            "tpot_s": distribution(self.tpot_s),
            "jct_breakdown": self.jct_breakdown.as_dict(),
            "trajectory_breakdown_mean": {
                phase: seconds * share for phase, seconds in self.phases.as_dict().items()
            },
            "kv": self.kv.figures(),
        }


@dataclass(frozen=True, slots=True)
class StepSummary:
    """One rollout step, measured."""

    step: int
    weights_version: int
    totals: Totals
    tail_frac: float | None
    slowest: Slowest | None
    num_replaced: int
    dropped: Dropped

    @property
    def jct_s(self) -> float:
        return self.totals.jct_s

    def figures(self) -> StepFigures:
        return {
            **self.totals.figures(),
            "step": self.step,
            "weights_version": self.weights_version,
            "tail_frac": self.tail_frac,
            "slowest": self.slowest,
            "replaced": self.num_replaced,
            "dropped": self.dropped,
        }


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The value `share` (0..1) of the way through the sorted samples, interpolated linearly."""
    if not samples:
        return None
    ordered = sorted(samples)
    whole, fraction = divmod(share * (len(ordered) - 1), 1)
    low = ordered[int(whole)]
    high = ordered[min(int(whole) + 1, len(ordered) - 1)]
    return low + (high - low) * fraction


def distribution(samples: Sequence[float]) -> Distribution:
    return {
        "mean": math.fsum(samples) / len(samples) if samples else None,
        "p50": percentile(samples, 0.5),
        "p99": percentile(samples, 0.99),
    }


def summarise_step(
    trajectories: Sequence[Trajectory],
    step: int,
    weights_version: int,
    kv: KVBytes,
    *,
    num_replaced: int = 0,
) -> StepSummary:
    """The figures of one rollout step; `kv` is what was moved during it.

    `num_replaced` trajectories failed, were played again and are not among `trajectories`.
    """
    first_start_s = min((t.started_s for t in trajectories), default=0.0)
    return StepSummary(
        step=step,
        weights_version=weights_version,
        totals=_step_totals(trajectories, first_start_s, kv),
        tail_frac=tail_frac([t.finished_s - first_start_s for t in trajectories]),
        slowest=_slowest(trajectories),
        num_replaced=num_replaced,
        dropped=_dropped(trajectories),
    )


def _step_totals(trajectories: Sequence[Trajectory], first_start_s: float, kv: KVBytes) -> Totals:
    if not trajectories:
        return Totals(kv=kv)
    last = max(trajectories, key=lambda t: t.finished_s)
    turns = [turn for t in trajectories for turn in t.turns]
    return Totals(
        jct_s=last.finished_s - first_start_s,
        jct_breakdown=PhaseSeconds(queue=last.started_s - first_start_s) + last.phases,
        phases=reduce(add, (t.phases for t in trajectories)),
        reward=sum(t.reward for t in trajectories),
        outcomes=Counter(t.outcome.value for t in trajectories),
        num_turns=len(turns),
        num_attempts=sum(turn.num_attempts for turn in turns),
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        hit_tokens=sum(turn.hit_tokens for turn in turns),
        output_tokens=sum(turn.output_tokens for turn in turns),
        recomputed_tokens=sum(turn.recomputed_tokens for turn in turns),
        renewed_tokens=sum(turn.renewed_tokens for turn in turns),
        over_older_kv_tokens=sum(turn.output_tokens for turn in turns if turn.older_kv_tokens),
        ttft_s=array("d", (turn.ttft_s for turn in turns)),
        ttst_s=array("d", (turn.ttst_s for turn in turns if turn.ttst_s is not None)),
        tpot_s=array("d", (turn.tpot_s for turn in turns if turn.tpot_s is not None)),
        kv=kv,
    )


def tail_frac(finishes_s: Sequence[float]) -> float | None:
    if not finishes_s or max(finishes_s) <= 0:
        return None
    ordered = sorted(finishes_s)
    tail_starts_s = ordered[math.ceil(TAIL_STARTS_AT * len(ordered)) - 1]
    return 1 - tail_starts_s / ordered[-1]


def _slowest(trajectories: Sequence[Trajectory]) -> Slowest | None:
    if not trajectories:
        return None
    slowest = max(trajectories, key=lambda t: t.duration_s)
    phases = slowest.phases.as_dict()
    phase = max(phases, key=phases.__getitem__)
    return {
        "trajectory_id": slowest.trajectory_id,
        "turns": len(slowest.turns),
        "tokens": slowest.num_tokens,
        "duration_s": slowest.duration_s,
        "phase": phase,
        "phase_s": phases[phase],
    }


def _dropped(trajectories: Sequence[Trajectory]) -> Dropped:
    dropped = [t.num_tokens for t in trajectories if t.stop_reason is StopReason.DROPPED]
    kept = [t.num_tokens for t in trajectories if is_usable(t)]
    return {
        "count": len(dropped),
        "tokens_over_kept": fmean(dropped) / fmean(kept) if dropped and sum(kept) else None,
    }


def summarise_job(
    steps: Sequence[StepSummary],
    *,
    job: str,
    seed: int,
    timing_s: Mapping[str, float],
    versions: Mapping[str, str],
    replay: ReplayFigures | None = None,
    resumed: ResumedFigures | None = None,
) -> JobSummary:
    """The content of summary.json of a job that ran; `timing_s` tells what stands beside the JCT, such as
    `train`."""
    totals = reduce(add, (step.totals for step in steps), Totals())
    return {
        **totals.figures(),
        "job": job,
        "seed": seed,
        "steps": [step.figures() for step in steps],
        "timing_s": dict(timing_s),
        "replay": replay,
        "transport": "",  # whoever started the engines knows
        "resumed": resumed,
        "simulated": False,
        "simulation": None,
        "versions": dict(versions),
    }


def series(summary: StepSummary) -> dict[str, float]:
    """A step's figures under flat names with units, as W&B and metrics.jsonl have them.

    What was not measured is left out.
    """
    flat = dict(_flatten("rollout", summary.figures()))
    kv = {name: flat.pop(name) for name in list(flat) if name.startswith("rollout/kv/")}
    flat.pop("rollout/step")
    return {
        **flat,
        **{name.removeprefix("rollout/"): value for name, value in kv.items()},
        "timing_s/gen": summary.jct_s,
    }


def job_series(summary: JobSummary) -> dict[str, float]:
    """A job's figures under flat names `job/...`."""
    return dict(_flatten("job", {k: v for k, v in summary.items() if k not in ("steps", "seed")}))


def _flatten(path: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        unit = "_s" if path.endswith(("breakdown", "breakdown_mean")) else ""
        for name, inner in value.items():
            yield from _flatten(f"{path}/{name}{unit}", inner)
    elif isinstance(value, (int, float)):
        yield path, value
