"""What can be set about the schedulers' policy: meaning and bounds, no values (those live in conf/).

Names are ours; the paper's symbols stand beside them (DualPath, arXiv 2602.21548, sections 6.1, 6.2 and A.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """How turns get engines, read sides and prefill batches."""

    placement: Literal["least_loaded", "round_robin"]
    """Which engine of a group takes a turn: the paper's rule, or one after the other whatever their load."""
    group_nodes: int
    """Nodes whose engines form one group and fetch together. 0: all nodes of a role."""
    fetch_period_s: float
    """Shortest time between two fetches of a group, so that what arrives meanwhile is placed as one batch.
    0: a group fetches whenever something has changed."""
    fetch_max_requests: int
    """Most turns a group takes in one fetch."""
    rendezvous: Literal["prefill_first", "independent"]
    """When a turn joins the decode queue: once it has a prefill engine, or at submission. Its blocks are read
    only when it has both engines, either way."""
    prefill_load_counts: Literal["prompt", "miss"]
    """Tokens of a turn that count as a prefill engine's load: the whole prompt, or what is not a hit."""
    read_queue_limit_s: float
    """Seconds of queued reads above which a node's engines are taken only if no other is open (alpha)."""
    decode_balance_factor: float
    """A decode engine is lightly loaded up to this times the group's average tokens (Z = 1.05 x average)."""
    hbm_need: Literal["prompt", "context"]
    """Tokens of decode HBM a turn is placed with: its prompt, or its prompt and all it may generate."""
    read_memory_s: float
    """How long reads that a node was given count beside its read queue when a side is chosen, fading. 0: not
    at all, as in the paper."""
    read_tie: Literal["prefill", "decode"]
    """The side that reads where both sides are as good."""
    rebalance: bool
    """Move unread blocks to the other side while they are read, where both sides read (`split`)."""
    rebalance_gain: float
    """Unread blocks move to the other side only if the slower side's finish comes sooner by this share."""
    rebalance_min_blocks: int
    """Fewest blocks that are worth a move."""
    batching: Literal["auto", "quota", "count"]
    """What bounds a prefill batch. `quota`: its predicted attention time. `count`: the number of its new
    tokens alone. `auto`: the quota where engines of a group wait for one another
    (engines.group_lockstep) and the runner tells its attention time, else the count. The prompt that meets
    the bound is cut."""
    read_rate_memory_s: float
    """Seconds of reading at its usual rate after which a storage NIC's changed rate is known."""
    attention_quota_s: float
    """Predicted attention time up to which prompts join a prefill batch."""
    attention_quota_scope: Literal["layer", "forward"]
    """What the quota bounds: the attention of one layer, or of all layers of a forward together."""
    estimate_coefficients: tuple[float, float, float, float]
    """What an estimate starts from where the runner has no profile: seconds of a layer for each of its terms
    (once, a new token, a pair of a query and a key, a token of KV)."""
    estimate_forgetting: float
    """Weight of what an estimate knows after one more observation, in (0, 1]; 1 never forgets."""
    estimate_prior_weight: float
    """Observations that the ratios of the profiled coefficients count as, for ever."""
    estimate_outlier_factor: float
    """A measured time counts as at most this times the prediction, and at least one over it of it."""
    order: Literal["fifo", "similar", "longest_remaining"]
    """Which waiting turn is next: the first come; one whose estimate is near the first's; one of the
    trajectory group with most work left."""
    order_aging_s: float
    """A turn that has waited for so long goes before all that came later, whatever the order."""
    load_only_if_faster: bool
    """Load hit blocks only as far as that is faster than computing them; false loads every hit."""
    prefetch: bool
    """Read the context of an agent that waits for a tool ahead into a prefill node's memory, while that node
    has nothing else to read. It needs kvstore.dram_bytes."""
    prefetch_blocks: int
    """Most blocks that a node reads ahead at once; a prompt may have to wait for so many slots."""
    prefetch_pull: float
    """With `prefetch`: the node that keeps most of a prompt's hit in memory gets the turn unless its engine's
    load exceeds the least one by more than this times the tokens kept there."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "group_nodes", "fetch_period_s", "estimate_prior_weight")
        require_at_least(self, 1, "fetch_max_requests", "rebalance_min_blocks", "decode_balance_factor")
        require_at_least(self, 0, "order_aging_s", "read_memory_s", "prefetch_pull")
        require_at_least(self, 1, "prefetch_blocks")
        require_above(self, 0, "read_queue_limit_s", "attention_quota_s")
        require_above(self, 0, "read_rate_memory_s")
        require_above(self, 1, "estimate_outlier_factor")
        if not 0 < self.rebalance_gain < 1:
            raise ValueError(f"rebalance_gain must be between 0 and 1, got {self.rebalance_gain}")
        if not any(self.estimate_coefficients) or min(self.estimate_coefficients) < 0:
            raise ValueError(
                f"estimate_coefficients must be >= 0 and not all 0, got {list(self.estimate_coefficients)}"
            )
        if not 0 < self.estimate_forgetting <= 1:
            raise ValueError(f"estimate_forgetting must be in (0, 1], got {self.estimate_forgetting}")

    def read_queue_limit_tokens(self, snic_bytes_per_s: float, bytes_per_token: float) -> int:
        """Alpha, for a storage NIC of this rate and KV of this size."""
        return int(self.read_queue_limit_s * snic_bytes_per_s / bytes_per_token)
