"""What is simulated: a cluster, a model's profile, the scheduler's settings. Values are the caller's.

All at full size: bytes, seconds and rates are those of the machines that are meant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least
from engines.cluster_config import ClusterConfig
from engines.config import SchedulerConfig
from engines.model.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class SimCluster:
    """Nodes, each with GPUs of one role, and the links between them."""

    prefill_nodes: int
    decode_nodes: int
    gpus_per_node: int
    """Each is an engine with a compute NIC of its own."""
    rates: ClusterConfig
    """Of each node's storage NIC and DRAM and each GPU's compute NIC."""
    storage_bytes_per_s: float | None
    """What the whole store gives, reads and writes each; None: no limit."""
    copy_bytes_per_s: float | None
    """Where `rates.h2d` is `copy`: what a GPU's copy engine carries, each way; None: no limit."""
    prefill_staging_bytes: int
    """DRAM of a prefill node for the hits it reads: the paper's PE buffer."""
    decode_staging_bytes: int
    """DRAM of a decode node for prompts that are assembled there: the paper's DE buffer."""
    dram_bytes: int
    """Beside its staging memory: DRAM of a prefill node that keeps blocks read lately."""
    prefill_hbm_bytes: int
    """Without layerwise prefill: HBM of a GPU for the KV of one forward."""
    decode_kv_bytes: int
    """HBM of a decode GPU for KV."""
    decode_max_requests: int
    """Most requests in a GPU's decode batch."""
    prefill_ep_nodes: int
    """Nodes whose prefill GPUs form one expert-parallel group: a forward ends when the slowest of them is
    through with its own. 0: every GPU for itself."""
    decode_ep_nodes: int
    """The same of decode steps."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "prefill_nodes", "decode_nodes", "gpus_per_node", "decode_max_requests")
        require_at_least(self, 1, "prefill_staging_bytes", "decode_staging_bytes")
        require_at_least(self, 1, "prefill_hbm_bytes", "decode_kv_bytes")
        require_at_least(self, 0, "dram_bytes", "prefill_ep_nodes", "decode_ep_nodes")
        for name in ("storage_bytes_per_s", "copy_bytes_per_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, or null for no limit; got {rate}")
        if not self.rates.traffic_classes:
            raise ValueError("a simulated compute NIC always serves MODEL traffic first; set traffic_classes")

    @property
    def num_nodes(self) -> int:
        return self.prefill_nodes + self.decode_nodes

    @property
    def num_gpus(self) -> int:
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class SimSpec:
    """One simulation, but for its agents."""

    cluster: SimCluster
    profile: ModelProfile
    scheduler: SchedulerConfig
    """Its policy settings, read plan and decision log; its deadlines and heartbeats mean nothing here."""
    block_tokens: int
    prefill_batch_tokens: int
    """Most new tokens in one forward of a GPU."""
    prefill_load_limit_tokens: int
    """Beta of DualPath (arXiv 2602.21548, section 6.1)."""
    layerwise: bool
    """Hits pass through HBM layer by layer while a forward computes; false: before it, and HBM bounds it."""
    oracle: bool
    """No storage reads or writes, no host-device copies, no transfers."""
    sharing: Literal["closed_form", "max_min"]
    """How transfers share links. `closed_form`: rates are set when a step begins, by what the others ask for.
    `max_min`: every layer is a flow and all rates are max-min fair at any time; slow."""
    horizon_s: float | None
    """Virtual time at which the simulation ends, whatever is left; None: when all agents are done."""
    burst_linger_s: float = 0.0
    """As of EnginesConfig: a batch with room, and a decode GPU with nothing to do, wait for more while turns
    arrive within this time of one another or are on their way. 0: never."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "block_tokens", "prefill_batch_tokens", "prefill_load_limit_tokens")
        require_at_least(self, 0, "burst_linger_s")
        if self.scheduler.prefetch and not self.cluster.dram_bytes:
            raise ValueError("scheduler.prefetch reads ahead into memory: it needs dram_bytes above 0")
        if self.horizon_s is not None:
            require_above(self, 0, "horizon_s")

    @property
    def block_bytes(self) -> int:
        """Of a Full Block."""
        return self.block_tokens * self.profile.token_bytes
