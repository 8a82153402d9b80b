"""What a simulation is about to do, worked out before anything is written: its agents and its cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.sim.simulate import check_sizes
from engines.sim.spec import SimSpec
from engines.sim.workload import SimAgent
from rollout.config import RunConfig
from rollout.errors import UserError
from rollout.replay import nothing_fits, with_rates
from rollout.replay_rates import default_agents
from rollout.replay_task import arrival_times, deal, whole_sessions
from rollout.simulation.agents import sim_agents
from rollout.simulation.spec import check_context, sim_spec
from rollout.summary import ReplayFigures
from rollout.traces.load import load_sessions
from rollout.traces.session import Session


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """A simulation, ready to start."""

    config: RunConfig
    """With the rates of full size that `setting` gives."""
    spec: SimSpec
    agents: list[SimAgent]
    num_sessions: int
    """In the trace."""
    num_cut: int
    """Sessions that task.max_context_tokens cut or left out."""

    def told(self) -> str:
        """One line for people."""
        cluster = self.spec.cluster
        return (
            f"simulating {len(self.agents):,} agents of {self.num_sessions} sessions on "
            f"{cluster.prefill_nodes}P{cluster.decode_nodes}D, {cluster.num_gpus:,} GPUs, "
            f"{self.spec.profile.name}"
        )

    def figures(self) -> ReplayFigures:
        """What is known of it before it has run; scales are 1, as it is at full size."""
        config, rates = self.config, self.spec.cluster.rates
        contexts = {id(agent.rounds): agent.longest_context_tokens for agent in self.agents}
        tokens = sum(contexts[id(agent.rounds)] for agent in self.agents)
        return {
            "trace": config.trace or "sample",
            "sessions": self.num_sessions,
            "sessions_cut": self.num_cut,
            "agents": len(self.agents),
            "trace_window": config.trace_window,
            "setting": config.setting,
            "model_profile": self.spec.profile.name,
            "scale": 1.0,
            "effective_scale": 1.0,
            "time_scale": 1.0,
            "tool_wait_scale": config.tool_wait_scale,
            "arrivals": config.arrivals,
            "agents_per_s": config.agents_per_s,
            "rates": {
                "snic_bytes_per_s": rates.snic_bytes_per_s,
                "cnic_bytes_per_s": rates.cnic_bytes_per_s,
            },
            "store_bytes_expected": tokens * self.spec.profile.token_bytes,
            "oracle_s_estimated": None,
        }


def plan_simulation(config: RunConfig, sessions: Sequence[Session] | None = None) -> Simulation:
    """Work it out; UserError in one line if it cannot work. `sessions`: those of the trace, if known."""
    _refuse_scales(config)
    sim_spec(config)  # an impossible cluster is told before a long trace is read
    sessions = load_sessions(config.trace) if sessions is None else sessions
    longest = config.task.max_context_tokens
    whole = whole_sessions(sessions, longest)
    if not whole:
        raise nothing_fits(sessions, longest)
    assert config.model_profile is not None
    for session in whole:
        check_context(session, config.model_profile)
    dealt = deal(len(whole), config.num_agents or _default_agents(config), config.seed)
    longest = min(longest, config.model_profile.max_context_tokens)
    config = with_rates(config, [whole[place] for place in dealt])
    starts_s = None
    if config.agents_per_s is not None:
        starts_s = arrival_times(len(dealt), config.agents_per_s, config.seed)
    agents = sim_agents(
        whole,
        dealt,
        starts_s,
        max_context_tokens=longest,
        trace_window=config.trace_window,
        tool_wait_scale=config.tool_wait_scale,
    )
    spec = sim_spec(config)
    try:
        check_sizes(spec, agents)
    except ValueError as error:
        raise UserError(str(error)) from error
    num_cut = sum(session.longest_context_tokens > config.task.max_context_tokens for session in sessions)
    return Simulation(config, spec, agents, len(sessions), num_cut)


def _refuse_scales(config: RunConfig) -> None:
    for name in ("scale", "time_scale"):
        value = getattr(config, name)
        if value != 1:
            raise UserError(f"{name} must be 1 where job={config.job}, which is at full size; got {value}")
    if config.resume is not None:
        raise UserError(
            f"resume must be null where job={config.job}, which is run whole; got {config.resume}"
        )
    if config.engines.kind != "paced":
        raise UserError(f"job={config.job} runs no model: engines must be paced, got {config.engines.kind}")


def _default_agents(config: RunConfig) -> int:
    engines, gpus = config.engines, config.simulation.gpus_per_node
    nodes = engines.prefill_nodes + engines.decode_nodes
    return default_agents(engines.prefill_nodes * gpus, nodes)
