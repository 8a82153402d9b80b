"""A prompt on its way through a prefill engine: what of it is computed, and what its next chunk needs.

To a later chunk the earlier ones are hits that lie on the decode side. It knows neither batches nor time
limits; how block checksums look is the feed's and the store's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from engines.model.runner import PrefillRow
from engines.prefill_feed import FeedRow
from engines.sampling import Sampled
from engines.scheduling.prefill_quota import PromptRest
from engines.types import PhaseSeconds, PrefillJob, PromptKeys
from kvstore.layout import BlockLayout
from kvstore.transport import RegionHandle

BlockChecksums = bytes
"""Layer sums of a block (kvstore.checksum); nobody here looks into them."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A prompt whose last chunk is through."""

    sampled: Sampled
    slot_checksums: tuple[BlockChecksums, ...]
    """Per decode slot."""
    phases: PhaseSeconds


@dataclass(slots=True)
class PromptProgress:
    """A prompt whose hit has been read. Belongs to the engine's loop."""

    job: PrefillJob
    hit_slots: tuple[int | None, ...]
    """As in FeedRow, for the blocks that were read."""
    checksums: list[BlockChecksums]
    """Of the blocks that are read or computed."""
    done: asyncio.Future[Computed]
    arrived_s: float
    idle_since_s: float
    """Since when nothing has been done for it."""
    computed_tokens: int = 0
    """Miss tokens that earlier chunks computed; whole blocks while there are more."""
    phases: PhaseSeconds = field(default_factory=PhaseSeconds)

    @property
    def begun(self) -> bool:
        return self.computed_tokens > 0

    @property
    def rest(self) -> PromptRest:
        cached_tokens = self.job.placement.hit_tokens + self.computed_tokens
        return PromptRest(cached_tokens, len(self.job.miss_ids) - self.computed_tokens)

    def is_last(self, new_tokens: int) -> bool:
        """Whether a chunk of `new_tokens` is all that is left."""
        return self.computed_tokens + new_tokens == len(self.job.miss_ids)

    def row(self, new_tokens: int) -> PrefillRow:
        """The next chunk, as the runner takes it."""
        ids = self.job.miss_ids[self.computed_tokens : self.computed_tokens + new_tokens]
        return PrefillRow(self.rest.cached_tokens, ids, PromptKeys(self.job.chain_root, self.job.keys))

    def feed_row(self, new_tokens: int, layout: BlockLayout, region: RegionHandle) -> FeedRow:
        """The next chunk, as the feed takes it; `region` is the decode node's."""
        cached_tokens = self.rest.cached_tokens
        chunks = (None,) * (cached_tokens // layout.block_tokens - len(self.hit_slots))
        num_slots = layout.num_blocks(cached_tokens + new_tokens)
        return FeedRow(
            hit_slots=self.hit_slots + chunks,
            hit_checksums=tuple(self.checksums),
            decode_slots=self.job.placement.decode_slots[:num_slots],
            region=region,
            hit_sent=self.begun,
        )

    def advance(
        self, new_tokens: int, checksums: Sequence[BlockChecksums], phases: PhaseSeconds, now_s: float
    ) -> None:
        """The next chunk is computed and on the decode side; `checksums` are of its blocks."""
        self.computed_tokens += new_tokens
        self.checksums.extend(checksums)
        self.phases += phases
        self.idle_since_s = now_s
