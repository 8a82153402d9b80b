"""A turn on a decode engine, from its arrival to its end: its tokens, its blocks and when it got how far."""

from __future__ import annotations

from array import array
from concurrent.futures import Future
from dataclasses import dataclass, field

from engines.errors import EngineFailed
from engines.model.runner import DecodeRow
from engines.sampling import SampleSpec
from engines.stopping import StopCondition
from engines.types import BlockId, FinishReason, GenerateResult, HandOver, PhaseSeconds, PromptKeys, RequestId
from kvstore.checksum import damaged_blocks, layer_checksums
from kvstore.keys import BlockKey
from kvstore.layout import BlockLayout
from kvstore.staging import StagingMemory


@dataclass(slots=True, eq=False)
class RunningTurn:
    """One attempt. KV of tokens [0, position) is in the pool or the staging slots."""

    turn: HandOver
    stop: StopCondition
    arrived_s: float
    position: int = field(init=False)
    parent: BlockKey = field(init=False)
    """Of the block that `tail_ids` begin."""
    tail_ids: array[int] = field(init=False)
    """Ids of the tokens in the last, unfinished block whose KV is in the pool."""
    token_ids: array[int] = field(init=False)
    logprobs: array[float] = field(init=False)
    table: list[BlockId] = field(default_factory=list)
    aborted: bool = False
    """While its prompt was being copied."""
    settled: Future[None] = field(default_factory=Future)
    """Done when its prompt's copy has ended."""
    admitted_s: float = 0.0
    copied_s: float = 0.0
    second_s: float | None = None

    def __post_init__(self) -> None:
        self.position = self.turn.prompt_tokens
        self.parent = self.turn.tail_parent
        self.tail_ids = array("i", self.turn.tail_ids)
        self.token_ids = array("i", [self.turn.first_token])
        self.logprobs = array("f", [self.turn.first_logprob])
        self.stop.push(self.turn.first_token)

    @property
    def request_id(self) -> RequestId:
        return self.turn.placement.request_id

    def row(self) -> DecodeRow:
        """Its part of the next step."""
        prompt = PromptKeys(self.turn.chain_root, self.turn.keys)
        return DecodeRow(self.token_ids[-1], self.position, self.table, prompt)

    def sample_spec(self, job_seed: int) -> SampleSpec:
        """How its next token is drawn."""
        index = len(self.turn.earlier_ids) + len(self.token_ids)
        return SampleSpec(self.turn.sample_id, index, self.turn.sampling, job_seed)

    def result(self, reason: FinishReason, ended_s: float) -> GenerateResult:
        """What its client gets."""
        admitted_s = self.admitted_s or ended_s
        copied_s = self.copied_s or ended_s
        return GenerateResult(
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            finish_reason=reason,
            second_token_s=self.second_s,
            phases=PhaseSeconds(
                queue=admitted_s - self.arrived_s,
                kv_transfer=copied_s - admitted_s,
                decode=ended_s - copied_s,
            ),
        )


def verify_prompt(turn: HandOver, layout: BlockLayout, staging: StagingMemory, *, paged: bool) -> None:
    """Compare every prompt byte in the turn's slots with the checksums it was sent with; EngineFailed.

    `paged`: a block that is filled in part was sent whole.
    """
    slots = turn.placement.decode_slots
    num_whole = turn.prompt_tokens // layout.block_tokens
    sums, tail_sums = turn.slot_checksums[:num_whole], turn.slot_checksums[num_whole:]
    places = [staging.offset(slot) for slot in slots[:num_whole]]
    damaged = damaged_blocks(layout, staging.buffer, places, sums)
    for block, expected in enumerate(tail_sums, num_whole):
        count = layout.block_tokens if paged else layout.tokens_in_block(block, turn.prompt_tokens)
        if layer_checksums(layout, staging.slot(slots[block]), count) != expected:
            damaged.append(block)
    if damaged:
        block = damaged[0]
        raise EngineFailed(
            f"block {block} of {turn.placement.request_id} arrived damaged in slot {slots[block]}"
        )
