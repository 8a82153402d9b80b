"""What the steps of paced engines amount to: how even attention was, and what decoding should have taken.

Pure. Engines that wait for one another in every layer are as fast as their slowest: of each round in which
all took part, DualPath (arXiv 2602.21548, section 7) compares the longest attention with the mean. A decode
step's modelled time hangs on its rows and their contexts, so what delayed it is told by the ratio to that
time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from engines.measured import Forward
from engines.model.step_time import StepTimes
from engines.types import EngineId
from rollout.summary import AttentionFigures, DecodeFigures


def attention_figures(by_engine: Mapping[EngineId, Sequence[Forward]]) -> AttentionFigures:
    """Of the prefill engines of one group; None where no round had all of them."""
    rounds: dict[int, list[float]] = {}
    for forwards in by_engine.values():
        for forward in forwards:
            if forward.round:
                rounds.setdefault(forward.round, []).append(forward.attention_s)
    whole = [times for times in rounds.values() if len(times) == len(by_engine)]
    ratios = [max(times) * len(times) / sum(times) for times in whole if sum(times) > 0]
    return {
        "rounds": len(rounds),
        "whole_rounds": len(whole),
        "max_over_avg": statistics.fmean(ratios) if ratios else None,
        "mean_s": statistics.fmean(sum(times) / len(times) for times in whole) if whole else None,
    }


def decode_figures(by_engine: Mapping[EngineId, Sequence[Forward]], times: StepTimes) -> DecodeFigures:
    """Of the decode engines' last steps; None where there was none."""
    steps = [forward for forwards in by_engine.values() for forward in forwards]
    rows = sum(step.new_tokens for step in steps)
    modelled_s = sum(step.new_tokens * times.decode_s(step.new_tokens, step.kv_tokens) for step in steps)
    took_s = sum(step.new_tokens * step.duration_s for step in steps)
    return {
        "steps": len(steps),
        "rows_mean": rows / len(steps) if steps else None,
        "modelled_tpot_s": modelled_s / rows if rows else None,
        "step_tpot_s": took_s / rows if rows else None,
    }
