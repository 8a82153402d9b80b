"""What engines a run's configuration asks for: which model or profile, at which rates, on which store.

It reads the configuration, and of a model its folder; it starts nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.cluster import ClusterSpec
from engines.types import Weights
from kvstore.host_facts import host_facts
from kvstore.job_token import JobToken
from kvstore.keys import WeightsId
from kvstore.open_transport import TransportSpec
from kvstore.transport_choice import choose_transport
from kvstore.transport_config import TransportConfig
from rollout.config import RunConfig
from rollout.paced_engines import effective_rates, paced_spec

if TYPE_CHECKING:
    from engines.model.load import ModelFolder

BASE_WEIGHTS = WeightsId("base")
"""Names the model's own weights where a store is not shared."""


def model_of(config: RunConfig) -> ModelFolder | None:
    """The model to serve; None where engines are paced. Raises ValueError if none is named."""
    if config.engines.kind == "paced":
        return None
    if config.model.path is None:
        raise ValueError("the backend serves the model at model.path, got null")
    # transformers, which this imports, is nothing for paced engines.
    from engines.model.load import inspect_model

    return inspect_model(config.model.path)


def store_directory(config: RunConfig) -> Path:
    """Where blocks are stored: a directory of the run's own unless `kvstore.path` names one."""
    return Path(config.kvstore.path or Path(config.run_dir) / "kvstore").absolute()


def cluster_spec(
    config: RunConfig,
    model_path: str,
    store_path: str,
    *,
    run_id: str = "run",
    weights: Weights | None = None,
    transport: TransportConfig | None = None,
) -> ClusterSpec:
    """What the engines of `config` are made from, at `weights`; None: the model's own.

    `transport`: the chosen one; None: the best where all nodes are on this host.
    """
    transport = transport or choose_transport(config.transport, [host_facts(config.transport)]).config
    return ClusterSpec(
        engines=config.engines,
        scheduler=config.scheduler,
        kvstore=config.kvstore,
        trace_every=config.monitor.trace_every,
        keep_kv=config.kv_on_update == "keep",
        transport=TransportSpec(transport, JobToken.draw()),
        model_path=model_path,
        rates=effective_rates(config),
        paced=paced_spec(config),
        store_directory=store_path,
        run_id=run_id,
        weights=weights or Weights(0, BASE_WEIGHTS),
        job_seed=config.seed,
    )
