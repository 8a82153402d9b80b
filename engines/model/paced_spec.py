"""How a profiled model is made small enough for one machine: fewer bytes a token, and faster modelled time.

With NIC rates times `time_scale` / `effective_scale`, moving and computing keep the ratio that they have at
full size.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.bounds import require_above
from engines.model.profile import ModelProfile
from engines.model.step_time import StepTimes
from kvstore.layout import BlockLayout, KVFormat, KVGroup

WORD_BYTES = 8
"""KV is made and checked in words of this many bytes."""


@dataclass(frozen=True, slots=True)
class PacedSpec:
    """What a paced engine runs."""

    profile: ModelProfile
    scale: float
    """Divides bytes per token and layer; the quotient is rounded to whole words."""
    time_scale: float
    """Divides modelled times."""

    def __post_init__(self) -> None:
        require_above(self, 0, "scale", "time_scale")

    @property
    def layer_bytes(self) -> int:
        """Bytes of a token in one layer, as they are moved here: whole words, and at least one."""
        words = round(self.profile.layer_bytes / self.scale / WORD_BYTES)
        return WORD_BYTES * max(words, 1)

    @property
    def effective_scale(self) -> float:
        """What bytes per token are in truth divided by; rates are to be divided by the same."""
        return self.profile.layer_bytes / self.layer_bytes

    def collective_bytes(self, *, prefill: bool) -> float:
        """Bytes of a token in one layer's collectives, as they are moved here."""
        prefill_bytes, decode_bytes = self.profile.collective_bytes
        return (prefill_bytes if prefill else decode_bytes) / self.effective_scale

    @property
    def step_times(self) -> StepTimes:
        return StepTimes(self.profile, self.time_scale)

    def layout(self, block_tokens: int) -> BlockLayout:
        """One group: a paced engine makes no difference between what a layer keeps of a token."""
        groups = (KVGroup("kv", self.layer_bytes),)
        return BlockLayout(
            KVFormat(f"paced {self.profile.name}", self.profile.num_layers, groups), block_tokens
        )
