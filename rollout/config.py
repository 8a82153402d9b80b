"""The whole configuration of a run: meaning and bounds, no values.

The values live in conf/; the parts belong to the rooms that use them, and this file composes them.
Nothing below the entry point sees anything but these frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from engines.bounds import require_above, require_at_least
from engines.cluster_config import ClusterConfig
from engines.config import EnginesConfig, SchedulerConfig
from engines.model.profile import ModelProfile
from engines.types import SamplingParams
from kvstore.config import StoreConfig
from kvstore.transport_config import TransportConfig
from rollout.controller_config import ControllerConfig
from rollout.sandbox.config import SandboxConfig
from rollout.serve.config import ServeConfig
from rollout.simulation_config import BudgetConfig, SimulationConfig
from rollout.tasks import ENVIRONMENTS
from rollout.tools.config import ToolsConfig
from rollout.trainer_config import TrainerConfig
from rollout.warm_start_config import WarmStartConfig


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model that plays the agents: one on disk, or a tiny one the run makes. Exactly one of them."""

    path: str | None
    """A local Hugging Face folder, or a hub name, of a causal LM. null: the run makes its own."""
    warm_start: WarmStartConfig | None
    """How the run trains its own tiny model before the first step. null: take the one at `path`."""

    def __post_init__(self) -> None:
        if self.path is None and self.warm_start is None:
            raise ValueError("path must name a model unless model=warm_start makes one, got null")
        if self.path is not None and self.warm_start is not None:
            raise ValueError(f"path must be null where model.warm_start makes the model, got {self.path}")
        if self.path == "":
            raise ValueError("path must be a folder or a hub name, got an empty text")


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """What the agents do, how many of them at a time, and where each of them must stop."""

    environment: str
    """How tasks are played where their file does not say. `word_problems`: problems in words, with a
    calculator. `chain_arithmetic`: expressions for a tiny model, one operation a calculator call. `coding`: a
    small repository with a failing test, with bash and edit. `tool_use`: a question, with the tools its line
    names. `one_reply`: a conversation that is answered once and judged elsewhere. `skyrl_gym`: an environment
    of that package. `module:Class`: your own."""
    path: str | None
    """A JSONL file of tasks. null: the bundled ones of `word_problems` or `coding`, or generated ones for
    `chain_arithmetic`."""
    prompts_per_step: int
    """Tasks in one rollout step."""
    group_size: int
    """Trajectories of each task: the group its baseline is taken over."""
    max_turns: int
    """Most model calls of a trajectory."""
    max_context_tokens: int
    """Most tokens of a trajectory's context; a turn that would not fit is not started."""
    wall_time_s: float
    """Longest a trajectory may take."""
    turn_deadline_s: float
    """Longest one model call may take, retries included."""
    tool_timeout_s: float
    """Longest the environment may take over one reply of the model, all its tool calls included."""

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS and ":" not in self.environment:
            known = ", ".join(ENVIRONMENTS)
            raise ValueError(f"environment must be one of {known}, or module:Class, got {self.environment}")
        require_at_least(self, 1, "prompts_per_step", "group_size", "max_turns")
        require_at_least(self, 2, "max_context_tokens")
        require_above(self, 0, "wall_time_s", "turn_deadline_s", "tool_timeout_s")


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How output tokens are drawn; bounds and the meaning of a logprob are those of SamplingParams."""

    max_tokens: int
    """Most output tokens of one turn."""
    temperature: float
    """0 takes the most likely token."""
    top_p: float
    """Share of probability kept; 1 keeps all."""
    top_k: int
    """Tokens kept; 0 keeps all."""
    min_p: float
    """Least probability kept, as a share of the likeliest token's; 0 keeps all."""
    stop_strings: tuple[str, ...]
    """Texts that end a turn, beside those its environment names."""

    def __post_init__(self) -> None:
        self.params()

    def params(self) -> SamplingParams:
        """The same, as the engines take it: no stop ids yet, and the job's seed."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            stop_strings=self.stop_strings,
        )


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """Where the run's numbers go beside its own metrics.jsonl."""

    wandb: Literal["offline", "online", "off"]
    """`offline` writes run_dir/wandb and needs no account; `online` sends; `off` does neither."""
    project: str
    """W&B project."""
    name: str | None
    """Name of the run in W&B. null: the last part of run_dir."""
    trace_every: int
    """Every n-th turn is drawn in run_dir/trace.json, which Perfetto opens: what engines, storage NICs
    and compute NICs did for it. 1: every turn; 0: none, and no file."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "trace_every")


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Which Ray the run uses and how many workers play the agents."""

    address: str | None
    """A running cluster to join, host:port or `auto`. null: start one on loopback and stop it at the end."""
    agent_workers: int
    """Actors the agents are spread over."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "agent_workers")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run. Built by rollout.load_config, which forbids keys that are not here."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    job: Literal["train", "rollout", "replay", "simulate", "plan", "serve", "doctor"]
    """`train`: rollout, GRPO step, weight push, and again; then a last rollout. `rollout`: one rollout
    step, no trainer. `replay`: recorded agents are played again in one step. `simulate`: the same in virtual
    time, at full size; nothing is run. `plan`: the best division of `budget.nodes`, by simulations.
    `serve`: an OpenAI-compatible endpoint for agents that run elsewhere, until it is stopped.
    `doctor`: nothing is run; what this machine offers is told, and what to do about it."""
    run_dir: str
    """Folder the run writes; made if it is not there."""
    overwrite: bool
    """Whether a finished run in run_dir may be replaced."""
    resume: str | None
    """A run_dir to go on in: from its last checkpoint, and each trajectory from its last finished turn; its
    own overrides hold, those given beside are added. null: start."""
    on_update: Literal["finish", "abort", "continue"]
    """What happens to trajectories under way when the weights are updated (RolloutBackend.update_weights);
    none begins meanwhile. `finish`: the update waits until they have ended. `abort`: they are ended at once
    and come back truncated. `continue`: turns under way end, and each trajectory's next turn is sampled by
    the new weights."""
    kv_on_update: Literal["recompute", "keep"]
    """What trajectories that continue do with the KV of their context. `recompute`: the new weights compute
    it again, so no token is sampled over KV of other weights. `keep`: it stays, and the new weights compute
    what comes after it; that part is the trajectory's alone, no other can hit it."""
    seed: int
    """Seed of sampling, of generated tasks and of the trainer."""
    num_agents: int | None
    """Most agents at work at once; null: all of a step. In a replay, how many agents there are: the
    trace's sessions in order, then ones drawn at random; null: 64 for each paced prefill engine, or one for
    each session. In a simulation the same; job=plan takes a third of all GPUs for prefill ones."""
    experiment: str | None
    """Name of the experiment whose differences are applied; for information."""
    trace: str | None
    """The recorded agents: a file or a folder of closed-loop CSV, WEKA JSON, Mooncake JSONL or Bailian
    JSONL, plain, .gz or .xz; or paper-32k, paper-48k, paper-64k: 500 made sessions with the statistics of the
    paper's sets (DualPath, arXiv 2602.21548, table 2). null: the small sample that ships with the package."""
    trace_window: int | None
    """Rounds replayed of each session, from its middle; KV of the context before them is put into the store
    first, untimed. null: all."""
    setting: Literal["paper", "storage_bound"]
    """Rates of the storage NICs of paced engines. `paper`: those of `cluster`. `storage_bound`: lowered until
    reading through all of them takes three times as long as everything else."""
    scale: float
    """Divides the bytes of a token of paced engines, and the NIC rates of `cluster`."""
    time_scale: float
    """Divides the modelled times of paced engines, and multiplies the NIC rates of `cluster`."""
    tool_wait_scale: float
    """Recorded waits for tools take this many times as long, divided by time_scale. 0: nobody waits."""
    arrivals: Literal["closed", "poisson"]
    """`closed`: all agents start together. `poisson`: they arrive at random, `agents_per_s` on average."""
    agents_per_s: float | None
    """Agents that arrive in a second of full-size time; with arrivals=poisson only."""
    model: ModelConfig
    """The model that plays the agents."""
    task: TaskConfig
    """What the agents do."""
    sampling: SamplingConfig
    """How output tokens are drawn."""
    engines: EnginesConfig
    """The prefill and decode engines."""
    cluster: ClusterConfig
    """The links between them and to storage: their rates, where they are limited."""
    tools: ToolsConfig
    """How tools are called."""
    sandbox: SandboxConfig
    """What code that a model wrote may use."""
    model_profile: ModelProfile | None
    """What paced engines make of the model: its KV bytes and its times. null: the engines are not paced."""
    kvstore: StoreConfig
    """Where KV blocks live between turns."""
    transport: TransportConfig
    """How KV moves between nodes."""
    scheduler: SchedulerConfig
    """How turns are placed."""
    trainer: TrainerConfig
    """How the model learns."""
    monitor: MonitorConfig
    """Where numbers go."""
    ray: RayConfig
    """Which Ray is used."""
    serve: ServeConfig
    """The endpoint of job=serve."""
    controller: ControllerConfig
    """What becomes of groups with failed samples, what survives a kill, when a run counts as stuck."""
    simulation: SimulationConfig
    """The cluster of job=simulate and job=plan."""
    budget: BudgetConfig
    """What job=plan may spend."""

    @property
    def is_simulated(self) -> bool:
        """Whether time is virtual and nothing is run."""
        return self.job in ("simulate", "plan")

    def __post_init__(self) -> None:
        require_at_least(self, 0, "seed")
        require_at_least(self, 1, "num_agents", "trace_window")
        require_above(self, 0, "scale", "time_scale", "agents_per_s")
        require_at_least(self, 0, "tool_wait_scale")
        if (self.arrivals == "poisson") != (self.agents_per_s is not None):
            raise ValueError(
                f"agents_per_s must be given with arrivals=poisson and only then, got {self.agents_per_s} "
                f"with arrivals={self.arrivals}"
            )
        if not self.run_dir:
            raise ValueError("run_dir must be a folder's path, got an empty text")
        if self.engines.kind == "paced" and self.model_profile is None:
            raise ValueError("model_profile must name a profile where engines.kind=paced, got null")
        if self.kv_on_update == "keep" and self.engines.kind == "paced":
            raise ValueError(
                "kv_on_update must be recompute where engines.kind=paced, as KV there is checked against its "
                "name, got keep"
            )
        dram_bytes = self.kvstore.dram_bytes + (self.simulation.dram_bytes if self.is_simulated else 0)
        if self.scheduler.prefetch and not dram_bytes:
            beside = " or simulation.dram_bytes" if self.is_simulated else ""
            raise ValueError(
                f"kvstore.dram_bytes{beside} must be > 0 where scheduler.prefetch=true: "
                "it is what is read into, got 0"
            )
        if self.controller.group_policy == "min_viable" and self.controller.min_viable > self.task.group_size:
            raise ValueError(
                f"controller.min_viable must be <= task.group_size={self.task.group_size}, "
                f"got {self.controller.min_viable}"
            )
        if self.sampling.max_tokens >= self.task.max_context_tokens:
            raise ValueError(
                f"sampling.max_tokens must be < task.max_context_tokens="
                f"{self.task.max_context_tokens}, got {self.sampling.max_tokens}"
            )
