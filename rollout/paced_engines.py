"""What paced engines of a run compute, and the rates that go with their modelled times.

Moving and computing keep the ratio they have at full size. Engines that run a model take the cluster's rates
as they are.
"""

from __future__ import annotations

from engines.cluster_config import ClusterConfig
from engines.model.paced_spec import PacedSpec
from rollout.config import RunConfig


def paced_spec(config: RunConfig) -> PacedSpec | None:
    """What paced engines run; None where a model does."""
    if config.engines.kind != "paced":
        return None
    assert config.model_profile is not None
    return PacedSpec(config.model_profile, config.scale, config.time_scale)


def effective_rates(config: RunConfig) -> ClusterConfig:
    """The rates the limiter is given."""
    paced = paced_spec(config)
    if paced is None:
        return config.cluster
    return config.cluster.scaled(paced.time_scale / paced.effective_scale)
