"""All studies, by the name that `--only` takes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from rollout.bench.agreement import agreement
from rollout.bench.attention_balance import attention_balance
from rollout.bench.baselines import dram_tier, tool_waits
from rollout.bench.bench import Bench
from rollout.bench.controls import low_reuse, one_agent
from rollout.bench.decode_tpot import decode_tpot
from rollout.bench.ladder_study import ladder_equal, ladder_trace
from rollout.bench.nic_pairs import nic_pairs
from rollout.bench.real_model import real_model
from rollout.bench.snic_balance import snic_balance
from rollout.bench.steady import steady, steady_2p4d

STUDIES: dict[str, Callable[[Bench], None]] = {
    "steady": steady,
    "steady_2p4d": steady_2p4d,
    "ladder_equal": ladder_equal,
    "agreement": agreement,
    "nic_pairs": nic_pairs,
    "snic_balance": snic_balance,
    "attention_balance": attention_balance,
    "decode_tpot": decode_tpot,
    "low_reuse": low_reuse,
    "one_agent": one_agent,
    "real_model": real_model,
    "ladder_trace": ladder_trace,
    "dram_tier": dram_tier,
    "tool_waits": tool_waits,
}
ON_REQUEST = ("agreement",)
"""Only with `--only`: the whole has an hour, and these judge the simulator, not the paths."""
