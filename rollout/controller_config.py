"""What can be configured about the controller: meaning and bounds, no values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least
from rollout.step_policy import GroupRules


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What becomes of groups with failed samples, what survives a kill, and when a run counts as stuck."""

    group_policy: Literal["wait", "min_viable", "replace", "fail"]
    """What a sample that fails (engine_failed, tool_failed, timed_out) does to its group. `wait`: it comes
    back as it is, and training leaves it out. `min_viable`: the same, but the job stops when a group can no
    longer have `min_viable` usable trajectories. `replace`: it is played again, at most `max_replacements`
    times. `fail`: the job stops when a group can no longer have task.group_size usable trajectories."""
    min_viable: int
    """Fewest usable trajectories of a group with group_policy=min_viable."""
    max_replacements: int
    """Most times a sample is played again with group_policy=replace."""
    oversample: int
    """Samples of each group beyond task.group_size. When task.group_size of a group have ended well, the rest
    is dropped: ended at once, returned as truncated, counted, not trained on. 0: none."""
    adaptive: bool
    """Whether the number of agents at work follows KV pressure, where num_agents does not fix it: it falls
    while contexts are evicted from the store before their agents come back, and grows while none is."""
    journal: bool
    """Whether each finished turn is written to run_dir/journal, for `resume`."""
    journal_sync_s: float
    """Turns reach the disk itself at most so long after they are written: what a power failure may take. A
    kill takes nothing that was written."""
    stall_s: float
    """When nothing has moved for so long, the oldest trajectories are named and all stacks are dumped."""
    stall_oldest: int
    """How many are named then."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "max_replacements", "oversample")
        require_at_least(self, 1, "min_viable", "stall_oldest")
        require_above(self, 0, "journal_sync_s", "stall_s")

    def rules(self, group_size: int) -> GroupRules:
        """The same as numbers, for groups of `group_size`."""
        least = {"min_viable": self.min_viable, "fail": group_size}.get(self.group_policy, 0)
        replacements = self.max_replacements if self.group_policy == "replace" else 0
        return GroupRules(enough=group_size, least=least, max_replacements=replacements)
