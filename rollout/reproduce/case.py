"""One simulated run of the reproduction: a model, agents, nodes, and a step of the paper's ladder.

All cases share one configuration, conf/job/simulate.yaml, and the set-ups of the paper's section 7; a case
names what it changes. Nothing is tuned for a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from rollout.bench.ladder import BASIC, DUAL, DUAL_SCHEDULER, NO_LAYERWISE, ORACLE, SPLIT, Step
from rollout.compose import load_config
from rollout.config import RunConfig

FOOT, LAYERWISE, DUAL_PATH, DUALPATH, OURS, FLOOR = (
    NO_LAYERWISE,
    BASIC,
    DUAL,
    DUAL_SCHEDULER,
    SPLIT,
    ORACLE,
)
"""The paper's Basic, + Layer, + DPL and + Sched (its system); then `split`, and its Oracle with our plan."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated."""

    model: str
    trace: str | None
    """As `trace` of the configuration."""
    prefill_nodes: int
    decode_nodes: int
    agents: int
    step: Step
    agents_per_s: float | None = None
    horizon_s: float | None = None
    overrides: tuple[str, ...] = ()
    """More of the configuration."""
    append_scale: float = 1.0
    """Multiplies what every round appends; sessions are cut at the set's longest context."""
    output_scale: float = 1.0
    """The same of what it generates."""
    tool_wait_s: float = 0.0
    """Mean of made waits for tools, exponential; 0: none are made."""
    tool_wait_scale: float = 0.0
    """Multiplies the trace's own waits."""
    window: int | None = None
    """Rounds of each session."""

    def served(self, step: Step) -> Case:
        """The same, served another way."""
        return replace(self, step=step)

    @property
    def set_name(self) -> str:
        """`64k`, or a file's name."""
        return (self.trace or "sample").rpartition("/")[2].removeprefix("paper-")

    @property
    def cluster(self) -> str:
        return f"{self.prefill_nodes}P{self.decode_nodes}D"

    @property
    def setup(self) -> str:
        """For people: everything but the step."""
        load = f"{self.agents} agents" if self.agents_per_s is None else f"{self.agents_per_s:.3g} agents/s"
        return f"{self.model} {self.set_name} {self.cluster}, {load}"

    def config(self) -> RunConfig:
        config = _loaded((f"model_profile={self.model}", *self.step.overrides, *self.overrides))
        return replace(
            config,
            trace=self.trace,
            num_agents=self.agents,
            arrivals="closed" if self.agents_per_s is None else "poisson",
            agents_per_s=self.agents_per_s,
            trace_window=self.window,
            tool_wait_scale=1.0 if self.tool_wait_s else self.tool_wait_scale,
            engines=replace(config.engines, prefill_nodes=self.prefill_nodes, decode_nodes=self.decode_nodes),
            simulation=replace(config.simulation, horizon_s=self.horizon_s),
        )

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "set": self.trace,
            "nodes": self.cluster,
            "agents": self.agents,
            "agents_per_s": self.agents_per_s,
            "step": self.step.name,
            "horizon_s": self.horizon_s,
            "overrides": list(self.overrides),
            "append_scale": self.append_scale,
            "output_scale": self.output_scale,
            "tool_wait_s": self.tool_wait_s,
            "tool_wait_scale": self.tool_wait_scale,
            "rounds_of_each_session": self.window,
        }


@lru_cache(maxsize=256)
def _loaded(overrides: tuple[str, ...]) -> RunConfig:
    return load_config(["job=simulate", "monitor=off", *overrides])
