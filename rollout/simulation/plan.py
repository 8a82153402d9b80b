"""Searches how many of a budget's nodes should be prefill nodes, by simulating.

JCT over the number of prefill nodes has one valley, more or less. Few divisions are all simulated; of many a
coarse grid first, then halfway towards the neighbours of the best one, until the trials are spent. Every
division serves the same agents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from engines.sim.bottleneck import bottleneck
from engines.sim.simulate import simulate
from rollout.config import RunConfig
from rollout.errors import UserError
from rollout.replay import slo_figures
from rollout.replay_rates import default_agents
from rollout.simulation.figures import summarise_simulation
from rollout.simulation.setup import plan_simulation
from rollout.simulation.spec import sim_spec
from rollout.traces.load import load_sessions
from rollout.traces.session import Session

_COARSE = 5


@dataclass(frozen=True, slots=True)
class Split:
    """One division of the nodes, simulated."""

    prefill_nodes: int
    decode_nodes: int
    jct_s: float
    ttft_s: float | None
    """Means over turns, as is the next."""
    tpot_s: float | None
    within_slo: bool | None
    """TTFT and TPOT within the paper's limits."""
    bottleneck: str

    @property
    def name(self) -> str:
        return f"{self.prefill_nodes}P{self.decode_nodes}D"

    def figures(self) -> dict[str, object]:
        return {"split": self.name, **asdict(self)}


def plan_splits(config: RunConfig, say: Callable[[str], None]) -> list[Split]:
    """The divisions that were simulated, the fastest first. UserError if none can be."""
    engines = config.engines
    nodes = config.budget.nodes or engines.prefill_nodes + engines.decode_nodes
    if config.num_agents is None:
        gpus = max(nodes * config.simulation.gpus_per_node // 3, 1)
        config = replace(config, num_agents=default_agents(gpus, nodes))
    possible = _possible(config, nodes)
    sessions = load_sessions(config.trace)
    found: dict[int, Split] = {}
    while (prefill_nodes := next_division(possible, found, config.budget.simulations)) is not None:
        split = found[prefill_nodes] = _simulated(_divided(config, prefill_nodes, nodes), sessions)
        say(f"{split.name}: JCT {split.jct_s:,.0f} s, {split.bottleneck}")
    return sorted(found.values(), key=lambda split: (split.jct_s, split.prefill_nodes))


def _possible(config: RunConfig, nodes: int) -> list[int]:
    """Numbers of prefill nodes with which the model fits."""
    possible, refused = [], None
    for prefill_nodes in range(1, nodes):
        try:
            sim_spec(_divided(config, prefill_nodes, nodes))
        except UserError as error:
            refused = refused or error
        else:
            possible.append(prefill_nodes)
    if not possible:
        raise UserError(f"no division of {nodes} nodes works: {refused}") from refused
    return possible


def next_division(possible: list[int], found: dict[int, Split], most: int) -> int | None:
    """What to simulate next; None: enough."""
    left = [each for each in possible if each not in found]
    if not left or len(found) >= most:
        return None
    if len(possible) <= most:
        return left[0]
    coarse = min(_COARSE, most)
    if len(found) < coarse:
        step = (len(possible) - 1) / max(coarse - 1, 1)
        grid = (possible[round(place * step)] for place in range(coarse))
        return next((each for each in grid if each not in found), left[0])
    best = min(found.values(), key=lambda split: split.jct_s).prefill_nodes
    below = [each for each in left if max((f for f in found if f < best), default=0) < each < best]
    above = [each for each in left if best < each < min((f for f in found if f > best), default=10**9)]
    wider = max(below, above, key=len)
    return wider[len(wider) // 2] if wider else None


def _divided(config: RunConfig, prefill_nodes: int, nodes: int) -> RunConfig:
    engines = replace(config.engines, prefill_nodes=prefill_nodes, decode_nodes=nodes - prefill_nodes)
    return replace(config, engines=engines)


def _simulated(config: RunConfig, sessions: Sequence[Session]) -> Split:
    simulation = plan_simulation(config, sessions)
    result = simulate(simulation.spec, simulation.agents)
    figures = summarise_simulation(simulation.agents, result).figures()
    return Split(
        prefill_nodes=config.engines.prefill_nodes,
        decode_nodes=config.engines.decode_nodes,
        jct_s=result.jct_s,
        ttft_s=figures["ttft_s"]["mean"],
        tpot_s=figures["tpot_s"]["mean"],
        within_slo=slo_figures(figures, 1.0)["met"],
        bottleneck=bottleneck(simulation.spec, result),
    )
