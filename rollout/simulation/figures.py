"""Makes a simulation's columns into the figures that every job ends with, and those that only it has."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from engines.sim.balance import attention_max_over_avg, snic_max_over_avg
from engines.sim.bottleneck import bottleneck, phase_seconds, resource_uses
from engines.sim.result import SimResult
from engines.sim.spec import SimSpec
from engines.sim.workload import SimAgent
from engines.types import PHASES, PhaseSeconds
from rollout.metrics import KVBytes, StepSummary, Totals, tail_frac
from rollout.summary import SimulationFigures, Slowest
from rollout.types import Outcome

EARLY = 0.05
"""The part of a run over which the paper tells how even attention is."""


def summarise_simulation(agents: list[SimAgent], result: SimResult) -> StepSummary:
    """The one step of a simulation. Agents that a horizon cut off count as truncated."""
    turns, ended = result.turns, ~np.isnan(result.agent_end_s)
    done = ~np.isnan(turns.end_s)
    finishes_s = result.agent_end_s[ended] - result.agent_start_s.min()
    return StepSummary(
        step=0,
        weights_version=0,
        totals=Totals(
            jct_s=result.jct_s,
            jct_breakdown=_last_agents_phases(result),
            phases=PhaseSeconds(**phase_seconds(result)),
            outcomes=Counter(
                {
                    Outcome.COMPLETED.value: int(ended.sum()),
                    Outcome.TRUNCATED.value: int((~ended).sum()),
                }
            ),
            num_turns=int(done.sum()),
            num_attempts=int(done.sum()),
            prompt_tokens=int(turns.prompt_tokens[done].sum()),
            hit_tokens=int(turns.hit_tokens[done].sum()),
            output_tokens=int(turns.output_tokens[done].sum()),
            ttft_s=_known(turns.ttft_s),
            ttst_s=_known(turns.ttst_s),
            tpot_s=_known(turns.tpot_s),
            kv=_kv_bytes(result),
        ),
        tail_frac=tail_frac(finishes_s.tolist()),
        slowest=_slowest(agents, result),
        num_replaced=0,
        dropped={"count": 0, "tokens_over_kept": None},
    )


def simulation_figures(spec: SimSpec, result: SimResult) -> SimulationFigures:
    """What only a simulation has."""
    profile, turns = spec.profile, result.turns
    early_s = float(result.agent_start_s.min()) + EARLY * result.jct_s
    forwards, rows, steps = result.forwards, result.decode_row_steps, result.decode_steps
    return {
        "cluster": asdict(spec.cluster),
        "model_profile": profile.name,
        "origins": dict(profile.origins),
        "token_bytes": profile.token_bytes,
        "layerwise": spec.layerwise,
        "oracle": spec.oracle,
        "sharing": spec.sharing,
        "horizon_s": spec.horizon_s,
        "agents_finished": result.num_finished,
        "resources": {use.resource: use.share for use in resource_uses(spec, result)},
        "bottleneck": bottleneck(spec, result),
        "snic_max_over_avg_by_second": snic_max_over_avg(result.snic),
        "attention_max_over_avg": attention_max_over_avg(forwards),
        "attention_max_over_avg_early": attention_max_over_avg(forwards, early_s),
        "prompts_per_forward": _ratio(forwards.prompts, forwards.members),
        "new_tokens_per_forward": _ratio(forwards.new_tokens, forwards.members),
        "rows_per_decode_step": rows / steps if steps else None,
        "mean_context_tokens": float(turns.prompt_tokens.mean()) if len(turns) else None,
        "moved_blocks": result.num_moved_blocks,
        "events": result.num_events,
        "wall_s": result.wall_s,
    }


def _last_agents_phases(result: SimResult) -> PhaseSeconds:
    """Of the agent that finished last, the time before its start being `queue`; its last tools are not in."""
    if not result.num_finished:
        return PhaseSeconds()
    last = int(np.nanargmax(result.agent_end_s))
    waited_s = float(result.agent_start_s[last] - result.agent_start_s.min())
    return PhaseSeconds(queue=waited_s) + _phases_of(result, last)


def _phases_of(result: SimResult, agent: int) -> PhaseSeconds:
    rows = result.turns.agent == agent
    return PhaseSeconds(**{phase: float(np.nansum(result.turns.phases[phase][rows])) for phase in PHASES})


def _slowest(agents: list[SimAgent], result: SimResult) -> Slowest | None:
    if not result.num_finished:
        return None
    took_s = result.agent_end_s - result.agent_start_s
    slowest = int(np.nanargmax(took_s))
    phases = _phases_of(result, slowest).as_dict()
    phase = max(phases, key=lambda name: phases[name])
    return {
        "trajectory_id": agents[slowest].agent_id,
        "turns": len(agents[slowest].rounds),
        "tokens": agents[slowest].longest_context_tokens,
        "duration_s": float(took_s[slowest]),
        "phase": phase,
        "phase_s": phases[phase],
    }


def _kv_bytes(result: SimResult) -> KVBytes:
    return KVBytes(
        read_prefill_side=int(result.read_bytes["prefill_side"]),
        read_decode_side=int(result.read_bytes["decode_side"]),
        read_dram=int(result.read_bytes["dram"]),
        written=int(result.written_bytes),
        snic_bytes=tuple(int(each) for each in result.snic.read_bytes.sum(axis=0)),
    )


def _known(column: npt.NDArray[np.floating]) -> array[float]:
    return array("d", column[~np.isnan(column)].astype(np.float64).tobytes())


def _ratio(over: npt.NDArray[np.integer], under: npt.NDArray[np.integer]) -> float | None:
    return float(over.sum() / under.sum()) if under.sum() else None
