"""One turn on its way through a simulated cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.prefill_quota import PromptRest
from engines.types import RequestId

if TYPE_CHECKING:
    from engines.sim.decode_group import DecodeGpu
    from engines.sim.prefill_group import PrefillGpu


class SimTurn:
    """Its sizes, where it was placed, and since when it waits for what. Times are virtual seconds."""

    __slots__ = (
        "agent",
        "buffer_since_s",
        "buffer_wait_s",
        "decode_gpu",
        "decode_s",
        "dram_blocks",
        "finish_step",
        "first_token_s",
        "hit_blocks",
        "kv_load_s",
        "kv_transfer_s",
        "min_blocks",
        "on_decode",
        "on_prefill",
        "output_tokens",
        "pair",
        "persist_wait_s",
        "prefill_gpu",
        "prefill_s",
        "prompt_tokens",
        "queue_s",
        "reads_left",
        "request_id",
        "rest",
        "row",
        "second_token_s",
        "sent_hit",
        "since_s",
        "stored_blocks",
        "submit_s",
    )

    def __init__(self, row: int, agent: int, prompt_tokens: int, output_tokens: int, hit_blocks: int) -> None:
        self.row = row
        """In the turn log; it names the turn."""
        self.request_id = RequestId(str(row))
        self.agent = agent
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.stored_blocks = hit_blocks
        """Leading blocks of its prompt that are stored."""
        self.hit_blocks = hit_blocks
        """Those of them that it loads."""
        self.submit_s = 0.0
        self.pair: EnginePair | None = None
        self.prefill_gpu: PrefillGpu
        self.decode_gpu: DecodeGpu
        self.on_prefill = 0
        """Hit blocks read through the prefill node's storage NIC; and the decode node's; and kept in DRAM."""
        self.on_decode = 0
        self.dram_blocks = 0
        self.reads_left = 0
        self.rest: PromptRest
        """What is left to compute."""
        self.sent_hit = False
        """Whether an earlier chunk has sent the decode node the hits that were read on the prefill side."""
        self.since_s = 0.0
        """When its last phase ended."""
        self.buffer_since_s: float | None = None
        self.queue_s = 0.0
        self.buffer_wait_s = 0.0
        self.kv_load_s = 0.0
        self.prefill_s = 0.0
        self.kv_transfer_s = 0.0
        self.persist_wait_s = 0.0
        self.decode_s = 0.0
        self.first_token_s = 0.0
        self.second_token_s = 0.0
        self.finish_step = 0
