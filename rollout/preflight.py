"""Looks at everything a job needs before anything is started, so that bad input costs one line.

It opens the model's configuration, the task file and the machine's memory figures. It starts nothing but,
where tasks run code, a sandbox for a moment.
"""

from __future__ import annotations

from pathlib import Path

from kvstore.host_memory import available_bytes
from rollout.config import RunConfig
from rollout.environments import needs_sandbox
from rollout.errors import UserError
from rollout.replay import ReplayPlan, max_context_tokens, plan_replay
from rollout.sandbox.sandbox import check_sandbox
from rollout.tasks import bundled_tasks_path, load_tasks

FETCHED_MODEL = "models/smollm2-135m-instruct"
"""What scripts/fetch_model makes and conf/model/smollm2.yaml names."""
_PROCESS_BYTES = 400 << 20
"""Resident memory of a process that has imported torch and transformers."""


def check(config: RunConfig) -> ReplayPlan | None:
    """Raise UserError with one line for the first thing that cannot work; what a replay is about to do."""
    _check_tasks(config)
    _check_decision_log(config.scheduler.decision_log, overwrite=config.overwrite)
    if config.engines.kind == "vllm":
        _check_vllm()
    if config.engines.kind == "paced":
        _check_memory(config, 0)
    elif config.model.path is not None:
        _check_model(config, config.model.path)
    if config.job == "replay":
        return plan_replay(config, max_context_tokens(config))
    if config.engines.kind == "paced":
        raise UserError(f"engines=paced has no text to play job={config.job} with; use job=replay")
    return None


def _check_tasks(config: RunConfig) -> None:
    """The task file is good, its environments can be imported, a sandbox can be started if one is needed."""
    environment = config.task.environment
    if config.job in ("replay", "serve") or (config.task.path is None and environment == "chain_arithmetic"):
        return
    tasks = load_tasks(Path(config.task.path or bundled_tasks_path(environment)), environment)
    if True in {needs_sandbox(task) for task in tasks}:
        check_sandbox(config.sandbox)


def _check_decision_log(path: str | None, *, overwrite: bool) -> None:
    """The scheduler opens it, which runs elsewhere and late."""
    if path is None:
        return
    if Path(path).is_file() and not overwrite:
        raise UserError(
            f"scheduler.decision_log={path} is there already; name another file, or overwrite=true"
        )
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise UserError(f"scheduler.decision_log={path} must name a file in a folder that is there")


def _check_model(config: RunConfig, path: str) -> None:
    if path == FETCHED_MODEL and not Path(path).exists():
        raise UserError(f"model.path={path} is not there yet; run scripts/fetch_model, or give your own")
    from engines.errors import ModelUnsupported
    from engines.model.load import inspect_model

    try:
        model = inspect_model(path)
    except ModelUnsupported as error:
        raise UserError(str(error)) from error
    if config.job not in ("replay", "serve") and config.task.max_context_tokens > model.max_context_tokens:
        raise UserError(
            f"task.max_context_tokens must be at most the model's {model.max_context_tokens}, got "
            f"{config.task.max_context_tokens}"
        )
    _check_memory(config, model.num_parameters_bytes)


def _check_vllm() -> None:
    from engines.errors import VllmRefused
    from engines.vllm.version import require_installed

    try:
        require_installed()
    except VllmRefused as error:
        raise UserError(str(error)) from error


def _check_memory(config: RunConfig, model_bytes: int) -> None:
    """All engines, nodes and trainer ranks share this host unless a Ray cluster is joined."""
    if config.ray.address is not None:
        return
    engines = config.engines
    num_engines = engines.num_prefill_engines + engines.num_decode_engines
    needed = num_engines * (model_bytes + _PROCESS_BYTES)
    needed += engines.num_decode_engines * engines.decode_kv_bytes
    needed += (engines.prefill_nodes + engines.decode_nodes) * config.kvstore.staging_bytes
    if config.job == "train" and config.trainer.steps > 0:
        # Weights, gradients and two moments of AdamW, whole on each rank below ZeRO 1.
        needed += 4 * model_bytes + config.trainer.ranks * _PROCESS_BYTES
    available = available_bytes()
    if needed > available:
        raise UserError(
            f"{num_engines} engines and their buffers need about {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are free; lower engines.decode_engines_per_node, "
            "engines.decode_kv_bytes or kvstore.staging_bytes"
        )
