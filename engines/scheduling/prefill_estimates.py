"""What a prefill engine expects of its next forward, and how far off it was.

Pure policy. Two estimates of the same prompts: the attention of one layer, which the quota bounds (DualPath,
arXiv 2602.21548, section 6.2), and the whole forward. Both start from the runner's profile, or from the
configured coefficients where it has none, and learn from every forward. A runner that cannot tell attention
from the rest has all of its forward counted as attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engines.scheduling.estimate import PromptWork, TimeEstimate
from engines.scheduling.prefill_quota import Quota
from engines.scheduling.settings import SchedulingSettings


@dataclass(frozen=True, slots=True)
class PrefillProfile:
    """Four coefficients each, in seconds, for the terms of engines.scheduling.estimate."""

    layer_attention: tuple[float, ...]
    """Of the attention of one layer."""
    forward: tuple[float, ...]
    """Of the whole forward."""
    time_scale: float
    """What the profiled device's seconds are divided by here; the quota is meant in that device's."""


class PrefillEstimates:
    """One prefill engine's."""

    def __init__(
        self,
        settings: SchedulingSettings,
        num_layers: int,
        profile: PrefillProfile | None,
        *,
        in_lockstep: bool,
    ) -> None:
        """A runner that has a profile tells its attention time too. `in_lockstep`: others of a group wait for
        this engine's forwards."""
        is_useful = profile is not None and in_lockstep
        bounds_attention = settings.batching == "quota" or (settings.batching == "auto" and is_useful)
        time_scale = 1.0 if profile is None else profile.time_scale
        self._settings = settings
        self._num_layers = num_layers
        self._bound_layers = 1 if settings.attention_quota_scope == "layer" else num_layers
        self._quota_s = settings.attention_quota_s / time_scale if bounds_attention else math.inf
        self._knows_scale = profile is not None
        self._start(profile or self._guess(1.0))
        self.num_forwards = 0

    def quota(self, *, limit_tokens: int, limit_kv_tokens: float, block_tokens: int) -> Quota:
        """What the next forward may take in."""
        return Quota(
            attention_s=self._quota_s,
            num_layers=self._bound_layers,
            limit_tokens=limit_tokens,
            limit_kv_tokens=limit_kv_tokens,
            block_tokens=block_tokens,
        )

    def observe(self, work: PromptWork, forward_s: float, attention_s: float | None) -> None:
        """A forward over `work` took so long; `attention_s` is that of all layers, None if unknown."""
        self.num_forwards += 1
        if not self._knows_scale and forward_s > 0:
            # Coefficients that nobody profiled are ratios: the first forward says of what.
            self._knows_scale = True
            self._start(self._guess(forward_s / self.forward.predict_s(work)))
            return
        self.forward.observe(work, forward_s)
        attention_s = forward_s if attention_s is None else attention_s
        self.layer_attention.observe(work, attention_s / self._num_layers)

    def _start(self, profile: PrefillProfile) -> None:
        self.layer_attention = _estimate(self._settings, profile.layer_attention)
        self.forward = _estimate(self._settings, profile.forward)

    def _guess(self, slowness: float) -> PrefillProfile:
        layer = tuple(slowness * value for value in self._settings.estimate_coefficients)
        return PrefillProfile(layer, tuple(self._num_layers * value for value in layer), 1.0)


def _estimate(settings: SchedulingSettings, profiled: Sequence[float]) -> TimeEstimate:
    return TimeEstimate(
        profiled,
        forgetting=settings.estimate_forgetting,
        prior_weight=settings.estimate_prior_weight,
        outlier_factor=settings.estimate_outlier_factor,
    )
