"""What a replay is about to do, worked out before anything starts: its agents, its rates, its sizes.

It reads the trace, deals it out, applies `setting`, and refuses what cannot work: a context that no buffer
holds, more KV than the store may take. Paced engines scale; engines that run a model take the cluster's rates
as they are, and their times are their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvstore.layout import BlockLayout
from rollout.config import RunConfig
from rollout.errors import UserError
from rollout.paced_engines import effective_rates, paced_spec
from rollout.replay_rates import default_agents, oracle_s, storage_bound_rate, workload
from rollout.replay_task import ReplayTask, poisson_arrivals, replay_tasks
from rollout.summary import Figures, ReplayFigures, SloFigures
from rollout.traces.load import load_sessions
from rollout.traces.session import Session

TTFT_SLO_S = 4.0
TPOT_SLO_S = 0.05
"""At full size (DualPath, arXiv 2602.21548, section 7)."""
_MAX_PER_S = 1e15


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """A replay, ready to start."""

    config: RunConfig
    """With the rates of full size that `setting` gives."""
    tasks: tuple[ReplayTask, ...]
    num_sessions: int
    """In the trace."""
    num_cut: int
    """Sessions that were cut or left out because a context would not fit."""
    stored_bytes: int | None
    """KV that the store will hold in the end; None where the engines' KV format is not known yet."""
    oracle_s: float | None
    """The least time it could take with paced engines."""

    @property
    def num_turns(self) -> int:
        """Of all agents together."""
        return sum(len(task.session.rounds) for task in self.tasks)

    @property
    def time_scale(self) -> float:
        """What modelled times are divided by; 1 where a model runs."""
        return self.config.time_scale if paced_spec(self.config) is not None else 1.0

    def told(self) -> str:
        """One line for people."""
        stored = (
            "" if self.stored_bytes is None else f", about {self.stored_bytes / 1e9:.2f} GB of KV to store"
        )
        rate = effective_rates(self.config).snic_bytes_per_s
        nics = "" if rate is None else f", {rate / 1e6:.0f} MB/s a storage NIC"
        model = (
            ""
            if paced_spec(self.config) is not None
            else "; a model runs, so setting, scale and time_scale change nothing"
        )
        return f"replay: {len(self.tasks)} agents of {self.num_sessions} sessions{stored}{nics}{model}"

    def slo(self, figures: Figures) -> SloFigures:
        """Whether the mean TTFT and TPOT stayed within the paper's limits."""
        return slo_figures(figures, self.time_scale)

    def figures(self) -> ReplayFigures:
        """What is known of it before it has run."""
        config, paced, rates = self.config, paced_spec(self.config), effective_rates(self.config)
        return {
            "trace": config.trace or "sample",
            "sessions": self.num_sessions,
            "sessions_cut": self.num_cut,
            "agents": len(self.tasks),
            "trace_window": config.trace_window,
            "setting": config.setting if paced else None,
            "model_profile": config.model_profile.name if paced and config.model_profile else None,
            "scale": config.scale if paced else None,
            "effective_scale": paced.effective_scale if paced else None,
            "time_scale": config.time_scale if paced else None,
            "tool_wait_scale": config.tool_wait_scale,
            "arrivals": config.arrivals,
            "agents_per_s": config.agents_per_s,
            "rates": {
                "snic_bytes_per_s": rates.snic_bytes_per_s,
                "cnic_bytes_per_s": rates.cnic_bytes_per_s,
            },
            "store_bytes_expected": self.stored_bytes,
            "oracle_s_estimated": self.oracle_s,
        }


def slo_figures(figures: Figures, time_scale: float) -> SloFigures:
    """Whether mean TTFT and TPOT are within the paper's limits, divided by `time_scale`."""
    ttft_limit_s, tpot_limit_s = TTFT_SLO_S / time_scale, TPOT_SLO_S / time_scale
    ttft_s, tpot_s = figures["ttft_s"]["mean"], figures["tpot_s"]["mean"]
    met = None if ttft_s is None else ttft_s <= ttft_limit_s and (tpot_s or 0.0) <= tpot_limit_s
    return {"ttft_limit_s": ttft_limit_s, "tpot_limit_s": tpot_limit_s, "met": met}


def max_context_tokens(config: RunConfig) -> int | None:
    """Of the model that runs; None where none does."""
    if config.engines.kind == "paced" or config.model.path is None:
        return None
    # transformers, which this imports, is nothing for paced engines.
    from engines.model.load import inspect_model

    return inspect_model(config.model.path).max_context_tokens


def plan_replay(config: RunConfig, max_context_tokens: int | None = None) -> ReplayPlan:
    """Work the replay out; UserError in one line if it cannot work.

    `max_context_tokens`: of the model, where one runs.
    """
    sessions = load_sessions(config.trace)
    longest = min(config.task.max_context_tokens, max_context_tokens or config.task.max_context_tokens)
    tasks = replay_tasks(
        sessions,
        num_agents=_num_agents(config),
        max_context_tokens=longest,
        trace_window=config.trace_window,
        seed=config.seed,
    )
    if not tasks:
        raise nothing_fits(sessions, longest)
    config = with_rates(config, [task.session for task in tasks])
    if config.agents_per_s is not None:
        scale = config.time_scale if paced_spec(config) else 1.0
        tasks = poisson_arrivals(tasks, config.agents_per_s * scale, config.seed)
    return ReplayPlan(
        config=config,
        tasks=tuple(tasks),
        num_sessions=len(sessions),
        num_cut=sum(session.longest_context_tokens > longest for session in sessions),
        stored_bytes=_check_sizes(config, tasks),
        oracle_s=_oracle_s(config, tasks),
    )


def nothing_fits(sessions: Sequence[Session], max_context_tokens: int) -> UserError:
    """No session has even a first round that is short enough."""
    shortest = min(session.rounds[0].append_tokens + session.rounds[0].output_tokens for session in sessions)
    return UserError(
        f"no session of the trace fits: a context may have {max_context_tokens} tokens, the shortest first "
        f"round needs {shortest}; raise task.max_context_tokens or take another model or trace"
    )


def _num_agents(config: RunConfig) -> int | None:
    if config.num_agents is not None or config.engines.kind != "paced":
        return config.num_agents
    engines = config.engines
    return default_agents(engines.num_prefill_engines, engines.prefill_nodes + engines.decode_nodes)


def with_rates(config: RunConfig, sessions: Sequence[Session]) -> RunConfig:
    """The configuration with the storage NICs that `setting` asks for."""
    paced = paced_spec(config)
    if config.setting == "paper":
        return config
    if paced is None:
        raise UserError(
            "setting=storage_bound goes by modelled times, and here a model runs; use engines=paced, or "
            "setting=paper and cluster.snic_bytes_per_s"
        )
    engines = config.engines
    times = replace(paced, time_scale=1.0).step_times
    load = workload(sessions, times, config.kvstore.block_tokens)
    if not load.read_tokens:
        raise UserError(
            "setting=storage_bound needs hits to read, and no round of the trace goes on from a whole block "
            "of an earlier one; use setting=paper"
        )
    rate = storage_bound_rate(
        load.read_tokens * paced.profile.token_bytes,
        engines.prefill_nodes + engines.decode_nodes,
        oracle_s(load, engines.num_prefill_engines),
    )
    if config.cluster.snic_bytes_per_s is not None:
        rate = min(rate, config.cluster.snic_bytes_per_s)  # it only ever lowers
    return replace(config, cluster=replace(config.cluster, snic_bytes_per_s=min(rate, _MAX_PER_S)))


def _oracle_s(config: RunConfig, tasks: list[ReplayTask]) -> float | None:
    paced = paced_spec(config)
    if paced is None:
        return None
    load = workload([task.session for task in tasks], paced.step_times, config.kvstore.block_tokens)
    return oracle_s(load, config.engines.num_prefill_engines)


def _check_sizes(config: RunConfig, tasks: list[ReplayTask]) -> int | None:
    """Bytes the store will hold; UserError if a buffer or the store is too small for the replay."""
    paced = paced_spec(config)
    if paced is None:
        return None
    layout = paced.layout(config.kvstore.block_tokens)
    longest = max(tasks, key=lambda task: task.session.longest_context_tokens)
    _check_buffers(config, layout, longest)
    blocks = sum(-(-task.session.longest_context_tokens // layout.block_tokens) for task in tasks)
    stored_bytes = blocks * layout.slot_bytes
    capacity_bytes = config.kvstore.capacity_bytes
    if capacity_bytes is not None and stored_bytes > capacity_bytes:
        raise UserError(
            f"the replay stores about {stored_bytes / 1e9:.1f} GB of KV, kvstore.capacity_bytes allows "
            f"{capacity_bytes / 1e9:.1f} GB; raise scale or kvstore.capacity_bytes, or lower num_agents"
        )
    return stored_bytes


def _check_buffers(config: RunConfig, layout: BlockLayout, longest: ReplayTask) -> None:
    tokens = longest.session.longest_context_tokens
    needed = -(-tokens // layout.block_tokens)
    reserved = config.engines.persist_slots * config.engines.decode_engines_per_node
    slots = config.kvstore.staging_bytes // layout.slot_bytes
    if needed + reserved > slots:
        raise UserError(
            f"a context of session {longest.task_id} has {tokens} tokens, {needed} blocks and {reserved} "
            f"reserved ones; kvstore.staging_bytes={config.kvstore.staging_bytes} holds {slots} blocks; "
            "raise it, or lower task.max_context_tokens"
        )
    pool_blocks = config.engines.decode_kv_bytes // layout.full_block_bytes
    if needed > pool_blocks:
        raise UserError(
            f"a context of session {longest.task_id} has {tokens} tokens, {needed} blocks; "
            f"engines.decode_kv_bytes={config.engines.decode_kv_bytes} holds {pool_blocks} blocks; raise it, "
            "or lower task.max_context_tokens"
        )
