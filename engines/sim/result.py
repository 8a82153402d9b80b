"""What came of a simulation, in columns; figures are made of them elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.types import PHASES

Floats = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class TurnTable:
    """Columns [turns], in order of agent and round; NaN where a turn did not come so far.

    Times are seconds from the simulation's start unless they are said to be durations.
    """

    agent: Counts
    """Index into the agents."""
    round: Counts
    prompt_tokens: Counts
    hit_tokens: Counts
    """Stored tokens that were not computed again; 0 for a turn that was not placed."""
    output_tokens: Counts
    submit_s: Floats
    ttft_s: Floats
    """Duration from submission to the first token."""
    ttst_s: Floats
    """Duration from the first to the second token; NaN for an output of one."""
    tpot_s: Floats
    """Mean duration of a token after the first; NaN for an output of one."""
    end_s: Floats
    phases: dict[str, Floats]
    """Duration of each of engines.types.PHASES; they sum to end_s - submit_s, `tool` being the wait after it
    and not in the sum."""

    def __len__(self) -> int:
        return len(self.agent)

    def check(self) -> None:
        """Raise AssertionError unless phases are told for every turn."""
        assert tuple(self.phases) == PHASES
        assert all(len(column) == len(self) for column in self.phases.values())


@dataclass(frozen=True, slots=True)
class LinkLoad:
    """All links of one kind: what passed them and what they carry."""

    link: str
    """As in engines.scheduling.bottleneck; and `prefill SNIC`, `decode SNIC`, `storage`."""
    num_links: int
    bytes_per_s: float
    """What one of them carries; infinite without a limit."""
    total_bytes: float
    max_bytes: float
    """Of the busiest of them."""

    @property
    def busy_s(self) -> float:
        """Seconds at its full rate that the mean one was needed for."""
        return self.total_bytes / self.num_links / self.bytes_per_s


@dataclass(frozen=True, slots=True, eq=False)
class SnicUse:
    """Bytes through each storage NIC in windows of a second, [windows, nodes]; prefill nodes come first."""

    read_bytes: Floats
    written_bytes: Floats


@dataclass(frozen=True, slots=True, eq=False)
class ForwardTable:
    """Prefill forwards, or rounds of an expert-parallel group, in columns [rounds], by when they began."""

    group: Counts
    began_s: Floats
    took_s: Floats
    members: Counts
    """GPUs that computed."""
    prompts: Counts
    """All members together, as are the next two."""
    new_tokens: Counts
    kv_tokens: Counts
    attention_max_s: Floats
    """Attention of all layers, on the GPU that took longest."""
    attention_sum_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class SimResult:
    """One simulation."""

    jct_s: float
    """From the first start to the last finish of those agents that finished; NaN if none did."""
    end_s: float
    """Virtual time at which it ended."""
    num_agents: int
    num_finished: int
    agent_start_s: Floats
    agent_end_s: Floats
    """[agents]; NaN for one that did not finish."""
    turns: TurnTable
    snic: SnicUse
    links: tuple[LinkLoad, ...]
    read_bytes: dict[str, float]
    """By side: `prefill_side`, `decode_side`, `dram`; and `ahead`, before anybody asked: what of that was
    used came from `dram`."""
    written_bytes: float
    forwards: ForwardTable
    decode_steps: float
    """Steps of all decode GPUs."""
    decode_row_steps: float
    """Tokens they made."""
    num_moved_blocks: int
    """That changed sides while they waited to be read."""
    num_events: int
    wall_s: float
    """What the simulation took."""
    cpu_s: float
    """What this process computed for it: the same where nothing else ran."""

    def link(self, name: str) -> LinkLoad:
        return next(link for link in self.links if link.link == name)
