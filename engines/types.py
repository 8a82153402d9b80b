"""The vocabulary of the engines room: what a turn asks for, where it is placed, what comes back.

Everything here is frozen and picklable; it crosses process boundaries. Token ids travel as
`array('i')`, 4 bytes each.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from kvstore.indexed_blocks import IndexedBlock, IndexedBlocks
from kvstore.keys import KEY_BYTES, BlockKey, WeightsId
from kvstore.pickled_by_fields import pickled_by_fields
from kvstore.store import BlockLocation

RequestId = NewType("RequestId", str)
EngineId = NewType("EngineId", str)
NodeId = NewType("NodeId", str)
SlotId = NewType("SlotId", int)
"""A Full Block's place in a node's staging memory."""
BlockId = NewType("BlockId", int)
"""A block's place in a decode engine's paged KV pool (its HBM)."""


LEAST_TEMPERATURE = 0.001
"""Of those above 0: logits that are divided by much less are no longer numbers."""


class FinishReason(StrEnum):
    """Why a turn's generation ended."""

    STOP_ID = "stop_id"
    """A stop id was sampled; it is the last output token."""
    STOP_STRING = "stop_string"
    """The output text came to contain a stop string; the token that completed it is the last one."""
    LENGTH = "length"
    """max_tokens were generated."""
    PREEMPTED = "preempted"
    """The decode engine ran out of blocks; the turn goes on elsewhere from its token ids."""
    ABORTED = "aborted"
    """The caller took the request back."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How output tokens are drawn.

    The reported logprob is log_softmax(logits / temperature) of the full vocabulary, before top_k, top_p
    and min_p cut it. At temperature 0 the most likely token is taken and the logprob is that of
    temperature 1.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None
    """None: the random number of output i depends only on (job seed, request id, i); else on (seed, i), so
    that asking again gives the same tokens."""

    def __post_init__(self) -> None:
        checks = (
            (self.max_tokens >= 1, "max_tokens", ">= 1", self.max_tokens),
            (
                self.temperature == 0 or self.temperature >= LEAST_TEMPERATURE,
                "temperature",
                f"0 or >= {LEAST_TEMPERATURE}",
                self.temperature,
            ),
            (0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p),
            (self.top_k >= 0, "top_k", ">= 0", self.top_k),
            (0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p),
        )
        for ok, name, bounds, value in checks:
            if not ok:
                raise ValueError(f"sampling.{name} must be {bounds}, got {value}")


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """Where a stretch of wall time went; each instant is charged to one phase.

    `kv_load` and `kv_transfer` count only while compute waits for them.
    """

    queue: float = 0.0
    buffer_wait: float = 0.0
    kv_load: float = 0.0
    prefill: float = 0.0
    kv_transfer: float = 0.0
    persist_wait: float = 0.0
    decode: float = 0.0
    tool: float = 0.0
    other: float = 0.0

    def __add__(self, more: PhaseSeconds) -> PhaseSeconds:
        return PhaseSeconds(*(a + b for a, b in zip(self.values(), more.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        """Seconds in the order of PHASES."""
        return tuple(float(getattr(self, name)) for name in PHASES)

    def as_dict(self) -> dict[str, float]:
        return dict(zip(PHASES, self.values(), strict=True))

    @property
    def total(self) -> float:
        return sum(self.values())


PHASES: tuple[str, ...] = tuple(PhaseSeconds.__dataclass_fields__)
OnPhase = Callable[[str], None]
"""Told the name of each phase as it begins."""


class EngineRole(StrEnum):
    """What an engine computes; fixed for its life."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine as the scheduler knows it."""

    engine_id: EngineId
    node_id: NodeId
    role: EngineRole
    kv_tokens: int = 0
    """Decode: tokens the paged KV pool holds. Prefill keeps none."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class Weights:
    """The weights engines hold: a version to compare, an id to key blocks with."""

    version: int
    weights_id: WeightsId


@dataclass(frozen=True, slots=True)
class ClusterSpeeds:
    """What is known beforehand of how fast a cluster's parts are. None: nothing."""

    snic_bytes_per_s: float | None = None
    """Of every node's storage NIC."""
    prefill_forward: tuple[float, ...] | None = None
    """Coefficients of a prefill forward's time, in seconds, for the terms of engines.scheduling.estimate."""
    time_scale: float = 1.0
    """What the profiled device's seconds are divided by here, rates being multiplied by it."""


class ReadSide(StrEnum):
    """Where a block range of a hit comes from."""

    PREFILL = "prefill"
    """Storage, read through the prefill node's storage NIC."""
    DECODE = "decode"
    """Storage, read through the decode node's storage NIC."""
    DRAM = "dram"
    """The prefill node's own staging memory, where an earlier turn left it: nothing is read."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class ReadRange:
    """Consecutive blocks of a prompt's hit that come from one side."""

    side: ReadSide
    start_block: int
    blocks: IndexedBlocks

    @property
    def end_block(self) -> int:
        return self.start_block + len(self.blocks)


@dataclass(frozen=True, slots=True)
class TurnHints:
    """What a caller knows of a turn's trajectory, for orders that use it."""

    group_id: str = ""
    """Its trajectory's group, whose turns an order may keep together; "" for none."""
    remaining_tokens: int | None = None
    """Tokens its trajectory will still append and generate, this turn's included, where that is known."""


NO_HINTS = TurnHints()


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What the scheduler sees of a turn: never the prompt's token ids."""

    request_id: RequestId
    """One attempt at one turn: no two attempts share it."""
    keys: tuple[BlockKey, ...]
    """Keys of the prompt's whole blocks, in order."""
    prompt_tokens: int
    max_output_tokens: int
    weights_version: int
    deadline_s: float
    """Seconds from submission after which waiting for a place is given up."""
    failed_engines: frozenset[EngineId] = frozenset()
    """Engines that failed the turn before; they are taken only if there is no other."""
    group_id: str = ""
    remaining_tokens: int | None = None
    """These two as in TurnHints."""
    client: str = ""
    """Who asks: <name>/<process>, so that turns are ended whose client is gone."""
    kv_weights_id: WeightsId | None = None
    """Weights that the keys name; None: those that engines hold."""
    num_kept_blocks: int = 0
    """Blocks from the start that are of older weights: they are hits, or the turn is refused (OlderKVLost),
    as nobody may make them under their names now."""

    @property
    def context_tokens(self) -> int:
        """Tokens the turn may hold at its end."""
        return self.prompt_tokens + self.max_output_tokens


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class Placement:
    """The scheduler's answer: who serves the turn and which blocks are read on which side."""

    request_id: RequestId
    prefill_engine: EngineId
    prefill_node: NodeId
    decode_engine: EngineId
    decode_node: NodeId
    read_plan: tuple[ReadRange, ...]
    hit_tokens: int
    """Whole blocks; at most prompt_tokens - 1."""
    prefill_slots: tuple[SlotId, ...]
    """Prefill node's slots of the blocks that come from there, in the order of the read plan. Those of
    ReadSide.DRAM are shared with other turns and only read."""
    decode_slots: tuple[SlotId, ...]
    """Decode node's slots for the whole prompt, in block order: it is assembled there. Blocks of
    ReadSide.DECODE are read into theirs."""
    weights_version: int
    weights_id: WeightsId
    waited: PhaseSeconds
    """queue, buffer_wait and persist_wait before the placement."""
    kv_weights_id: WeightsId | None = None
    """As in the request."""

    @property
    def named_weights_id(self) -> WeightsId:
        """Weights that the turn's keys name: what its blocks are stored under."""
        return self.weights_id if self.kv_weights_id is None else self.kv_weights_id

    def read_node(self, side: ReadSide) -> NodeId:
        """The node whose slots the blocks of this side of the read plan lie in."""
        return self.decode_node if side is ReadSide.DECODE else self.prefill_node

    def prefill_slot(self, block: int) -> SlotId | None:
        """The prefill node's slot of the prompt's block `block`; None for one that is read elsewhere."""
        first = 0
        for part in self.read_plan:
            if part.side is ReadSide.DECODE:
                continue
            if part.start_block <= block < part.end_block:
                return self.prefill_slots[first + block - part.start_block]
            first += len(part.blocks)
        return None

    def hit_blocks(self) -> Iterator[tuple[ReadSide, SlotId, IndexedBlock]]:
        """The hit's blocks in order, each with where it comes from and its slot on that side's node."""
        prefill_slots = iter(self.prefill_slots)
        for part in self.read_plan:
            for index, block in enumerate(part.blocks, part.start_block):
                on_decode = part.side is ReadSide.DECODE
                yield part.side, self.decode_slots[index] if on_decode else next(prefill_slots), block


@dataclass(frozen=True, slots=True)
class PrefillJob:
    """A placed turn, with the token ids the prefill engine must compute."""

    placement: Placement
    prompt_tokens: int
    tail_parent: BlockKey
    """What the key of the block that the prompt does not fill is chained to."""
    miss_ids: array[int]
    """Ids of [hit_tokens, prompt_tokens)."""
    keys: tuple[BlockKey, ...]
    """Keys of the prompt's whole blocks, in order."""
    chain_root: BlockKey
    sampling: SamplingParams
    sample_id: RequestId
    """Names the turn's random numbers; the same for every attempt at the turn."""
    earlier_ids: array[int]
    """Output tokens of this turn that an earlier attempt already sampled; they end the prompt."""


@dataclass(frozen=True, slots=True)
class HitLost:
    """Blocks of the promised hit did not arrive; the turn must be sent again with more ids.

    `lost_keys` are out of the index already.
    """

    hit_tokens: int
    lost_keys: tuple[BlockKey, ...]


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """Which context a prompt is, block by block."""

    chain_root: BlockKey
    """Parent key of the first block; it differs between weights."""
    keys: tuple[BlockKey, ...]
    """Keys of the whole blocks, in order."""


NO_KEYS = PromptKeys(BlockKey(bytes(KEY_BYTES)), ())


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class BlockPersist:
    """Write the block in `slot` of the node's staging memory to the store, then free the slot."""

    slot: SlotId
    key: BlockKey
    parent: BlockKey
    """Key of the block before it; the chain root for a context's first."""
    layer_checksums: bytes
    """Layer sums (kvstore.checksum)."""


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class AnnouncedBlock:
    """A persisted block: what the index must know of it."""

    key: BlockKey
    parent: BlockKey
    """Key of the block before it; the chain root for a context's first."""
    location: BlockLocation


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class SlotRelease:
    """Slots of a turn's decode node that it needs no more."""

    request_id: RequestId
    slots: tuple[SlotId, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """A prefilled turn on its way to the decode engine, whose node's slots hold the prompt's KV."""

    placement: Placement
    prompt_tokens: int
    keys: tuple[BlockKey, ...]
    """Keys of the prompt's whole blocks; those past the hit are not stored yet."""
    chain_root: BlockKey
    """Parent key of the first block."""
    tail_parent: BlockKey
    """Parent key of the block that `tail_ids` begin."""
    tail_ids: array[int]
    """Prompt ids after the last whole block."""
    slot_checksums: tuple[bytes, ...]
    """Per decode slot: layer sums of its prompt tokens, taken where they were made or verified."""
    first_token: int
    first_logprob: float
    finish_reason: FinishReason | None
    sampling: SamplingParams
    sample_id: RequestId
    earlier_ids: array[int]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Prefill's answer, sent once the decode engine holds the prompt."""

    token_id: int
    logprob: float
    finish_reason: FinishReason | None
    phases: PhaseSeconds
    hit_tokens: int


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The decode engine's answer, when the turn has ended on it."""

    token_ids: array[int]
    """Output tokens of this attempt, the prefill engine's first one included."""
    logprobs: array[float]
    finish_reason: FinishReason
    second_token_s: float | None
    """Seconds from the hand-over to the second token; None if there was none."""
    phases: PhaseSeconds


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What an agent gets for a turn, after any retries."""

    token_ids: array[int]
    logprobs: array[float]
    weights_version: int
    finish_reason: FinishReason
    prompt_tokens: int
    hit_tokens: int
    ttft_s: float
    ttst_s: float | None
    tpot_s: float | None
    duration_s: float
    phases: PhaseSeconds
    """Sums to duration_s."""
    num_attempts: int = 1
    recomputed_tokens: int = 0
    """Miss tokens of the attempts after the first."""
    renewed_tokens: int = 0
    """Tokens of the context that older weights had computed, and that were computed again under these."""
    older_kv_tokens: int = 0
    """Tokens of the context whose KV is of older weights than those that sampled."""
