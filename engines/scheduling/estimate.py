"""How long a prefill forward takes, from the (cached, new) tokens of its prompts.

Pure policy. DualPath (arXiv 2602.21548, sections 6.2 and A.4) maps attention work to time by a function
fitted to profiles. Ours has four terms, all with coefficients >= 0:

    1                                once per forward: launches
    new                              projections
    new x (cached + (new + 1) / 2)   query-key pairs; a sparse model's indexer sees them all
    cached + new                     KV that is brought in and read

A term for the keys that sparse attention selects explains nothing more on measured DeepSeek-V3.2 layers: the
four fit appended prompts of 8k tokens or more within 8 %. The fit follows the measured times (recursive least
squares of relative errors, with forgetting); it is held by the ratios of the profiled coefficients, which are
never forgotten, so that terms which do not vary in a workload stay where they were, and one odd time moves it
by no more than a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

NUM_TERMS = 4
_SWEEPS = 30
_ERROR_MEMORY = 0.05


@dataclass(frozen=True, slots=True)
class PromptWork:
    """Prompts of one forward, added up: the terms that an estimate weighs."""

    new_tokens: int = 0
    pairs: float = 0.0
    kv_tokens: int = 0

    @classmethod
    def of(cls, cached_tokens: int, new_tokens: int) -> PromptWork:
        """One prompt, or the chunk of one that is computed now."""
        pairs = new_tokens * (cached_tokens + (new_tokens + 1) / 2)
        return cls(new_tokens, pairs, cached_tokens + new_tokens)

    def __add__(self, more: PromptWork) -> PromptWork:
        return PromptWork(
            self.new_tokens + more.new_tokens, self.pairs + more.pairs, self.kv_tokens + more.kv_tokens
        )

    def times(self, count: int) -> PromptWork:
        """`count` prompts like this one."""
        return PromptWork(count * self.new_tokens, count * self.pairs, count * self.kv_tokens)

    def terms(self) -> tuple[float, float, float, float]:
        return (1.0, float(self.new_tokens), self.pairs, float(self.kv_tokens))


def predict_s(coefficients: Sequence[float], work: PromptWork) -> float:
    """Seconds of one forward over `work`; 0 for no prompts. It never falls as tokens are added."""
    if not work.kv_tokens:
        return 0.0
    return sum(a * b for a, b in zip(coefficients, work.terms(), strict=True))


class TimeEstimate:
    """Predicts and learns one kind of time: a layer's attention, or a whole forward."""

    def __init__(
        self,
        profiled: Sequence[float],
        *,
        forgetting: float,
        prior_weight: float,
        outlier_factor: float,
    ) -> None:
        """`profiled` are the four coefficients in seconds; the rest as in SchedulingSettings.

        Raises ValueError for a coefficient that is negative, or if none is above 0.
        """
        if len(profiled) != NUM_TERMS or not all(0 <= value < math.inf for value in profiled):
            raise ValueError(f"an estimate needs {NUM_TERMS} coefficients >= 0, got {list(profiled)}")
        if not any(profiled):
            raise ValueError("an estimate needs a coefficient above 0 to start from, got only zeros")
        self._profiled = tuple(map(float, profiled))
        self._forgetting = forgetting
        self._prior_weight = prior_weight
        self._outlier_factor = outlier_factor
        self._coefficients = list(self._profiled)
        self._normal = [[0.0] * NUM_TERMS for _ in range(NUM_TERMS)]
        self._right = [0.0] * NUM_TERMS
        self._scale_right = self._scale_normal = prior_weight
        self._mean_error = 0.0
        self._error_weight = 0.0

    @property
    def coefficients(self) -> tuple[float, ...]:
        return tuple(self._coefficients)

    @property
    def mape(self) -> float:
        """Mean of |predicted - measured| / measured over the last ~20 forwards, each before it was learnt."""
        return self._mean_error / self._error_weight if self._error_weight else 0.0

    def predict_s(self, work: PromptWork) -> float:
        """Seconds of one forward over `work`, as learnt so far."""
        return predict_s(self._coefficients, work)

    def observe(self, work: PromptWork, measured_s: float) -> None:
        """A forward over `work` took so long. Times that are not above 0 are not times and teach nothing."""
        if not (0 < measured_s < math.inf and work.kv_tokens):
            return
        predicted_s = self.predict_s(work)
        self._count_error(abs(predicted_s - measured_s) / measured_s)
        if predicted_s > 0:
            lowest_s, highest_s = predicted_s / self._outlier_factor, predicted_s * self._outlier_factor
            measured_s = min(max(measured_s, lowest_s), highest_s)
        self._learn([term / measured_s for term in work.terms()])
        self._solve()

    def _count_error(self, error: float) -> None:
        self._mean_error += _ERROR_MEMORY * (error - self._mean_error)
        self._error_weight += _ERROR_MEMORY * (1 - self._error_weight)

    def _learn(self, relative: Sequence[float]) -> None:
        """One more equation: the relative terms, weighed by the coefficients, should give 1."""
        for i, row in enumerate(self._normal):
            self._right[i] = self._forgetting * self._right[i] + relative[i]
            for j in range(NUM_TERMS):
                row[j] = self._forgetting * row[j] + relative[i] * relative[j]
        profiled = sum(a * b for a, b in zip(self._profiled, relative, strict=True))
        self._scale_right = self._forgetting * self._scale_right + profiled
        self._scale_normal = self._forgetting * self._scale_normal + profiled * profiled

    def _solve(self) -> None:
        """Least squares with coefficients >= 0, coordinate by coordinate from the last solution.

        Each coefficient is pulled to its profiled value, times what this machine takes longer on the whole,
        as strongly as by `prior_weight` observations in which its term alone made up the time.
        """
        scale = self._scale_right / self._scale_normal if self._scale_normal else 1.0
        wanted = [scale * value for value in self._profiled]
        pulls = [self._prior_weight / value**2 if value else 0.0 for value in wanted]
        for _ in range(_SWEEPS):
            for i, row in enumerate(self._normal):
                stiffness = row[i] + pulls[i]
                if stiffness > 0:
                    rest = sum(row[j] * self._coefficients[j] for j in range(NUM_TERMS) if j != i)
                    best = (self._right[i] - rest + pulls[i] * wanted[i]) / stiffness
                    self._coefficients[i] = max(best, 0.0)
