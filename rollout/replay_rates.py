"""What `setting` makes of a replay: how fast the storage NICs are, from the workload alone.

`storage_bound` lowers the rate of the storage NICs until reading every hit through all of them takes three
times the oracle: the time the replay would take if KV were always where it is needed. The oracle is estimated
from the profile's times, as the larger of two bounds: a prefill engine's share of all prompts, and the
longest agent alone. Both are lower bounds, so the ratio that is met in a run may be less than three; it is
reported.

Pure arithmetic. Bytes, seconds and rates are those of full size; scaling them is somebody else's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.model.step_time import StepTimes
from engines.scheduling.estimate import PromptWork
from rollout.traces.session import Session

STORAGE_BOUND_FACTOR = 3.0
LEAST_AGENTS_PER_SNIC = 8
AGENTS_PER_PREFILL_ENGINE = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """What a replay asks of a cluster, at full size."""

    read_tokens: int
    """Hit tokens that come from the store, if all that can be a hit is."""
    prefill_s: float
    """All prompts on one engine, in large batches."""
    longest_agent_s: float
    """The agent that takes longest if it is alone."""


def workload(sessions: Sequence[Session], times: StepTimes, block_tokens: int) -> Workload:
    """Of agents that replay `sessions`; each hit is what the agent itself had in its context."""
    read_tokens, prefill_s, longest_s = 0, 0.0, 0.0
    once_s = times.forward_coefficients()[0]  # per forward, so next to nothing per prompt of a large batch
    for session in sessions:
        known_tokens, agent_s = session.history_tokens, 0.0
        for prompt_tokens, each in session.prompts():
            kept = known_tokens if each.keep_tokens is None else min(each.keep_tokens, known_tokens)
            hit = min(kept, prompt_tokens - 1) // block_tokens * block_tokens
            forward_s = times.forward_s(PromptWork.of(hit, prompt_tokens - hit))
            context = prompt_tokens + each.output_tokens // 2
            agent_s += forward_s + times.decode_s(1, context) * (each.output_tokens - 1)
            prefill_s += forward_s - once_s
            read_tokens += hit
            known_tokens = prompt_tokens + each.output_tokens
        longest_s = max(longest_s, agent_s)
    return Workload(read_tokens, prefill_s, longest_s)


def oracle_s(load: Workload, num_prefill_engines: int) -> float:
    """The least time the replay takes where no byte is moved."""
    return max(load.prefill_s / num_prefill_engines, load.longest_agent_s)


def storage_bound_rate(read_bytes: float, num_snics: int, oracle_time_s: float) -> float:
    """Bytes/s of one storage NIC with which reading through all takes three times the oracle."""
    return read_bytes / (num_snics * STORAGE_BOUND_FACTOR * oracle_time_s)


def default_agents(num_prefill_engines: int, num_snics: int) -> int:
    """64 for each prefill engine, and at least 8 for each storage NIC."""
    return max(AGENTS_PER_PREFILL_ENGINE * num_prefill_engines, LEAST_AGENTS_PER_SNIC * num_snics)
