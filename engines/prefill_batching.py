"""Which prompts a prefill engine computes next, and how much of the last: its policy, with its settings.

One per engine, on the engine's loop. It joins the pure parts of engines.scheduling to what the runner tells
of itself; it neither computes nor waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.config import EnginesConfig
from engines.errors import RequestRefused
from engines.model.runner import ModelRunner
from engines.scheduling.estimate import PromptWork
from engines.scheduling.prefill_batch import padded_work, pick_padded_chunks
from engines.scheduling.prefill_estimates import PrefillEstimates
from engines.scheduling.prefill_quota import Chunk, PromptRest, pick_chunks
from engines.scheduling.settings import SchedulingSettings
from engines.types import PrefillJob


class PrefillBatching:
    """Picks batches and learns how long they take."""

    def __init__(self, config: EnginesConfig, settings: SchedulingSettings, runner: ModelRunner) -> None:
        layout = runner.layout
        self._runner = runner
        self._hbm_bytes = config.prefill_hbm_bytes
        self._kv_token_bytes = layout.full_block_bytes // layout.block_tokens
        self._is_layerwise = config.prefill_layerwise and not runner.paged
        self._estimates = PrefillEstimates(
            settings, layout.num_layers, runner.prefill_profile, in_lockstep=config.group_lockstep
        )
        self._quota = self._estimates.quota(
            limit_tokens=config.prefill_batch_tokens,
            limit_kv_tokens=math.inf if self._is_layerwise else self._hbm_bytes // self._kv_token_bytes,
            block_tokens=layout.block_tokens,
        )
        self._num_cut = 0
        self._num_rows = 0

    def refuse_too_long(self, job: PrefillJob) -> None:
        """Raise RequestRefused if HBM cannot hold the prompt's KV."""
        needed_bytes = job.prompt_tokens * self._kv_token_bytes
        if not self._is_layerwise and needed_bytes > self._hbm_bytes:
            raise RequestRefused(
                f"the {job.prompt_tokens} prompt tokens of {job.placement.request_id} have {needed_bytes} "
                f"bytes of KV, and for a batch HBM holds {self._hbm_bytes}; raise engines.prefill_hbm_bytes"
                + ("" if self._runner.paged else " or set engines.prefill_layerwise=true")
            )

    def pick(self, rests: Sequence[PromptRest]) -> tuple[Chunk, ...]:
        """The batch to run now, indices into `rests` in rising order; empty only if nobody waits."""
        if not self._runner.pads:
            return pick_chunks(rests, self._estimates.layer_attention, self._quota)
        return pick_padded_chunks(
            rests,
            self._estimates.layer_attention,
            self._quota,
            padding_exact=self._runner.padding_exact,
        )

    def ran(self, rows: Sequence[PromptRest], forward_s: float, *, num_cut: int) -> None:
        """A forward over `rows` took so long; `num_cut` of them have more to come."""
        self._num_rows += len(rows)
        self._num_cut += num_cut
        self._estimates.observe(self._work(rows), forward_s, self._runner.attention_s)

    @property
    def forward_times(self) -> tuple[float, ...]:
        """Coefficients of the estimate of whole forwards; none before the first."""
        return self._estimates.forward.coefficients if self._estimates.num_forwards else ()

    def figures(self) -> dict[str, float]:
        """Since the start: forwards, their rows, those that were cut; errors of the two estimates."""
        return {
            "forwards": self._estimates.num_forwards,
            "rows": self._num_rows,
            "cut_rows": self._num_cut,
            "estimate_mape": self._estimates.layer_attention.mape,
            "forward_mape": self._estimates.forward.mape,
        }

    def _work(self, rows: Sequence[PromptRest]) -> PromptWork:
        if self._runner.pads:
            return padded_work(rows)
        work = PromptWork()
        for row in rows:
            work += PromptWork.of(row.cached_tokens, row.new_tokens)
        return work
