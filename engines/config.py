"""What can be configured about the engines and their scheduler: meaning and bounds, no values.

The values live in conf/. Whoever builds one of these is told at once which field is out of range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least
from engines.scheduling.read_sides import ReadPlanName
from engines.scheduling.settings import SchedulingSettings

ABORT_SLACK_S = 5.0
"""For the messages to and fro."""


@dataclass(frozen=True, slots=True)
class EnginesConfig:
    """How many engines there are, what runs them, and what one step may take in."""

    kind: Literal["transformers", "vllm", "paced"]
    """What runs the model. `transformers`: the reference runner. `vllm`: vLLM's worker (docs/vllm.md); its
    prefill engines hold a batch's KV in `prefill_hbm_bytes`. `paced`: no model; computing takes as
    long as `model_profile` says, and KV is a pattern that is checked wherever it arrives."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model lies; `auto` takes CUDA devices if the process that starts the engines sees one. Each
    engine has a GPU of its own, or its share of one where there are fewer GPUs than engines."""
    dtype: Literal["float32", "bfloat16"]
    """Of weights and KV. float32 is exact against the oracle; bfloat16 halves the memory."""
    threads: int
    """Torch threads of each engine."""
    prefill_nodes: int
    """Nodes whose engines compute prompts."""
    prefill_engines_per_node: int
    """Prefill engines on each of them."""
    decode_nodes: int
    """Nodes whose engines generate."""
    decode_engines_per_node: int
    """Decode engines on each of them."""
    group_lockstep: bool
    """Whether the prefill engines of a paced run form one expert-parallel group: a forward then ends when the
    slowest of them is through with its own."""
    prefill_batch_tokens: int
    """Most miss tokens in one prefill batch, padding counted; a longer prompt is computed in chunks."""
    prefill_layerwise: bool
    """Hit KV passes through a prefill engine's HBM layer by layer while it computes. false: all layers are
    brought in before the first computes and all new KV is sent after the last."""
    prefill_hbm_bytes: int
    """Without `prefill_layerwise`: bytes of HBM for the KV of a prefill batch, hits and all; they bound the
    batch and the longest prompt."""
    oracle: bool
    """Paced engines only: no KV byte moves, neither from or to storage, nor between nodes, nor between host
    and device. What the GPUs alone would need."""
    burst_linger_s: float
    """A prefill batch with room, and a decode engine with nothing to do, wait for more while turns arrive
    within this time of one another or are on their way, at most ten times as long in all. 0: never."""
    prefill_load_limit_tokens: int
    """Tokens of unfinished work above which a prefill engine gets no more (beta in DualPath, arXiv
    2602.21548, section 6.1)."""
    decode_kv_bytes: int
    """Bytes of each decode engine's paged KV pool."""
    decode_max_requests: int
    """Most requests in one decode batch."""
    persist_slots: int
    """Staging slots each decode engine keeps for itself to persist generated blocks from, at least: where
    blocks are smaller than kvstore.pack_bytes, two packs of them if the node has the room."""
    step_deadline_s: float
    """Longest one model step or one hand-over may take before the engine counts as failed."""
    start_deadline_s: float
    """Longest the start of an engine, its model load included, may take."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "threads", "prefill_nodes", "prefill_engines_per_node")
        require_at_least(self, 1, "decode_nodes", "decode_engines_per_node", "decode_max_requests")
        require_at_least(self, 0, "burst_linger_s")
        require_at_least(self, 1, "prefill_batch_tokens", "prefill_load_limit_tokens", "prefill_hbm_bytes")
        require_at_least(self, 1, "decode_kv_bytes", "persist_slots")
        require_above(self, 0, "step_deadline_s", "start_deadline_s")
        if self.kind == "paced" and self.device != "cpu":
            raise ValueError(f"device must be cpu where engines.kind=paced, got {self.device}")
        if self.oracle and self.kind != "paced":
            raise ValueError(f"oracle must be false where engines.kind is not paced, got {self.kind}")

    @property
    def abort_deadline_s(self) -> float:
        """Longest an engine that works may take to let go of a turn: it ends its step, and then its I/O."""
        return 2 * self.step_deadline_s + ABORT_SLACK_S

    @property
    def num_prefill_engines(self) -> int:
        return self.prefill_nodes * self.prefill_engines_per_node

    @property
    def num_decode_engines(self) -> int:
        return self.decode_nodes * self.decode_engines_per_node


@dataclass(frozen=True, slots=True)
class SchedulerConfig(SchedulingSettings):
    """How turns are placed and how long they may wait: the policy's settings, and the scheduler's own."""

    read_plan: ReadPlanName
    """Which side reads a prompt's hit. `basic`: the prefill side, all of it. `dual`: the side whose node has
    less left to read, all of it. `split`: both at once, in shares such that both finish together.
    `alternate`: the two sides in turn."""
    place_deadline_s: float
    """Longest a turn waits for engines and buffers before it counts as failed."""
    pending_deadline_s: float
    """Longest a turn waits for a block of its prompt that another turn is computing or persisting; then
    the block is a miss."""
    max_attempts: int
    """Times a turn is tried before its trajectory ends with an engine error."""
    heartbeat_s: float
    """Time between two looks at whether an engine or a node agent answers."""
    heartbeat_deadline_s: float
    """One that has not answered for this long is absent: it gets no turns until it answers again, and turns
    that wait for it are tried elsewhere."""
    restart_after_s: float
    """An absent engine, node agent, agent worker or scheduler whose process is still there is ended and
    started anew when it has been silent for so much longer. One whose process is gone is at once."""
    decision_log: str | None
    """A file to which the scheduler writes all that its policy is told and decides, a JSON line each, so that
    it can be decided again; null: none."""

    def __post_init__(self) -> None:
        # Not super(): a class with slots is made anew, and super() would look for the one before.
        SchedulingSettings.__post_init__(self)
        require_above(self, 0, "place_deadline_s", "heartbeat_s", "heartbeat_deadline_s")
        require_at_least(self, 0, "restart_after_s")
        require_at_least(self, 0, "pending_deadline_s")
        require_at_least(self, 1, "max_attempts")
