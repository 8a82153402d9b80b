"""How long a profiled model computes: a prefill forward, its attention part, a decode step.

Pure arithmetic over a ModelProfile: no clock, no torch. The paced runner sleeps by it and a simulator may
count by it. A forward is layers x (attention + rest); its attention part is what a prefill quota bounds
(DualPath, arXiv 2602.21548, section 6.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.model.profile import ModelProfile
from engines.scheduling.estimate import PromptWork


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Times of `profile` divided by `time_scale`, in seconds."""

    profile: ModelProfile
    time_scale: float

    def attention_coefficients(self) -> tuple[float, ...]:
        """Of one layer, in the order of PromptWork.terms(): what a TimeEstimate may start from."""
        return tuple(weight / self.time_scale for weight in self.profile.attention_s)

    def forward_coefficients(self) -> tuple[float, ...]:
        """The same of a whole forward."""
        once, new, pairs, kv = self.attention_coefficients()
        rest_once, rest_new = (weight / self.time_scale for weight in self.profile.rest_s)
        layer = (once + rest_once, new + rest_new, pairs, kv)
        return tuple(self.profile.num_layers * weight for weight in layer)

    def attention_s(self, work: PromptWork) -> float:
        """Attention of one layer over a batch of prompts."""
        return _weighed(self.attention_coefficients(), work)

    def forward_s(self, work: PromptWork) -> float:
        """All layers over a batch of prompts."""
        return _weighed(self.forward_coefficients(), work)

    def layer_s(self, work: PromptWork) -> float:
        """One layer over a batch of prompts."""
        return self.forward_s(work) / self.profile.num_layers

    def decode_s(self, num_requests: int, context_tokens: int) -> float:
        """One step of a continuous batch whose contexts hold `context_tokens` together."""
        once, request, context = self.profile.decode_s
        return (once + request * num_requests + context * context_tokens) / self.time_scale

    def decode_collective_s(self, num_requests: int) -> float:
        """What collectives take of such a step where nothing is in their way."""
        once, request = self.profile.decode_collective_s
        return (once + request * num_requests) / self.time_scale


def _weighed(coefficients: tuple[float, ...], work: PromptWork) -> float:
    if not work.kv_tokens:
        return 0.0
    return sum(a * b for a, b in zip(coefficients, work.terms(), strict=True))
