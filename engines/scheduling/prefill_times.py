"""How long prompts take to compute, and how much of that every prefill engine has before it.

Pure policy, one per scheduler. It starts from the profile of the engines' forwards, where there is one. Each
engine learns how long its own take (engines.scheduling.prefill_estimates) and tells; what one has told counts
for its own prompts, the mean of all for a prompt that has no engine yet.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.scheduling.admission import blocks_to_load
from engines.scheduling.estimate import NUM_TERMS, PromptWork, predict_s
from engines.scheduling.read_sides import SideLoad
from engines.types import EngineId, RequestId


class PrefillTimes:
    """What is begun on an engine counts there until it is ended."""

    def __init__(self, guess: Sequence[float], profiled: Sequence[float] | None) -> None:
        """Coefficients of a whole forward: `guess` where nobody knows, in ratio only; then `profiled`."""
        self._is_profiled = profiled is not None
        self._told: dict[EngineId, tuple[float, ...]] = {}
        self._sum = [0.0] * NUM_TERMS
        self._mean = tuple(profiled or guess)
        self._open: dict[EngineId, dict[RequestId, float]] = {}

    @property
    def knows(self) -> bool:
        """Whether anybody has said how long forwards take here."""
        return self._is_profiled or bool(self._told)

    def learn(self, engine_id: EngineId, coefficients: Sequence[float]) -> None:
        """What the engine goes by now; nothing if it has not computed yet."""
        if not coefficients:
            return
        before = self._told.get(engine_id, (0.0,) * NUM_TERMS)
        self._told[engine_id] = tuple(coefficients)
        self._sum = [s - old + new for s, old, new in zip(self._sum, before, coefficients, strict=True)]
        self._mean = tuple(each / len(self._told) for each in self._sum)

    def predict_s(self, work: PromptWork, engine_id: EngineId | None = None) -> float:
        """Seconds that `work` takes by itself, on this engine or on any."""
        known = self._mean if engine_id is None else self._told.get(engine_id, self._mean)
        return predict_s(known, work)

    def begin(self, engine_id: EngineId, request_id: RequestId, work: PromptWork) -> None:
        """The engine is to compute this for the turn."""
        self._open.setdefault(engine_id, {})[request_id] = self.predict_s(work, engine_id)

    def end(self, engine_id: EngineId, request_id: RequestId) -> None:
        """The engine is done with the turn. Idempotent."""
        self._open.get(engine_id, {}).pop(request_id, None)

    def busy_s(self, engine_id: EngineId) -> float:
        """Work that the engine was given and has not ended."""
        return sum(self._open.get(engine_id, {}).values())

    def blocks_to_load(
        self,
        engine_id: EngineId,
        hit_blocks: int,
        prompt_tokens: int,
        sides: tuple[SideLoad, ...],
        *,
        block_bytes: int,
        block_tokens: int,
    ) -> int:
        """Blocks of a hit to load, as the engine would compute the others sooner."""
        return blocks_to_load(
            hit_blocks,
            prompt_tokens,
            lambda work: self.predict_s(work, engine_id),
            sides,
            block_bytes=block_bytes,
            block_tokens=block_tokens,
            engine_busy_s=self.busy_s(engine_id),
        )
