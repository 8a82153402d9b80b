"""Runs that never ran: summaries as a replay writes them, as far as the benchmark reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout.bench.ladder import Step
from rollout.bench.one_replay import CPU_LIMIT, Replayed, RunFailed

RATE = 100.0


def summary(jct_s: float, *, cpu_use: float = 0.5, completed: int = 2) -> dict[str, Any]:
    return {
        "jct_s": jct_s,
        "num_trajectories": 2,
        "num_turns": 4,
        "outcomes": {"completed": completed, "truncated": 2 - completed},
        "tokens": {},
        "hit_rate": 0.9,
        "ttft_s": {},
        "ttst_s": {},
        "tpot_s": {"mean": 0.02},
        "kv": {"read_bytes": {"prefill_side": 100, "decode_side": 200, "dram": 0}},
        "trajectory_breakdown_mean": {"kv_load": jct_s / 2, "prefill": jct_s / 2},
        "steps": [{"tail_frac": 0.1}],
        "replay": {
            "cpu_use": cpu_use,
            "rates": {"snic_bytes_per_s": RATE, "cnic_bytes_per_s": None},
            "snic": {
                "bytes": [[60, 40, 50]],
                "lengths_s": [1.0],
                "window_s": 1.0,
                "nodes": ["decode-0", "decode-1", "prefill-0"],
            },
            "decode": {"modelled_tpot_s": 0.01},
        },
    }


def replayed(step: str, jct_s: float, time_scale: float = 1.0, **changed: Any) -> Replayed:
    return Replayed(step, time_scale, summary(jct_s, **changed), 20.0, "digest", CPU_LIMIT)


class Script:
    """A runner that gives back what it was told to, in order; a text is a failure."""

    def __init__(self, answers: Sequence[dict[str, Any] | str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, float]] = []
        self.lines: list[list[str]] = []

    def run(
        self, step: Step, overrides: Sequence[str], time_scale: float, cpu_limit: float = CPU_LIMIT
    ) -> Replayed:
        self.asked.append((step.name, time_scale))
        self.lines.append([*overrides, *step.overrides, f"time_scale={time_scale:g}"])
        answer = self._answers.pop(0)
        if isinstance(answer, str):
            raise RunFailed(answer)
        return Replayed(step.name, time_scale, answer, 20.0, "digest", cpu_limit)
