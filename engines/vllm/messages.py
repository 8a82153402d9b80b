"""What the connector's two halves tell each other with every step of vLLM; plain and picklable.

plan     scheduler -> worker   what to load before, and save after, each layer of this step
report   worker -> scheduler   what became of it
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.staging import StagingHandle

Column = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PageMoves:
    """Pages of vLLM's cache, and where in staging memory each lies: columns of one length."""

    pages: Column
    slots: Column
    parts: Column
    """The page's number within its block."""


@dataclass(frozen=True, slots=True)
class BlockLoad:
    """Bring a hit into vLLM's pages, layer by layer."""

    load_id: int
    moves: PageMoves
    slots: tuple[int, ...]
    checksums: tuple[bytes, ...]
    """Per slot: its layer sums (kvstore.checksum), compared before a byte goes on."""


@dataclass(frozen=True, slots=True)
class BlockSave:
    """Bring the block that lies in `pages` into `slot`."""

    slot: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work."""

    staging: StagingHandle | None = None
    loads: tuple[BlockLoad, ...] = ()
    saves: tuple[BlockSave, ...] = ()
    """Blocks whose last token this step computes, or an earlier one."""
    late: tuple[tuple[str, tuple[BlockSave, ...]], ...] = ()
    """Of requests that have ended: their pages are free once these are saved."""


@dataclass(frozen=True, slots=True)
class SavedBlock:
    slot: int
    layer_checksums: bytes


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step's outcome."""

    loaded: tuple[int, ...] = ()
    """Ids of loads that are over, well or not: their slots are read no more."""
    damaged: tuple[int, ...] = ()
    """Slots whose bytes were not those that were read into them."""
    saved: tuple[SavedBlock, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.loaded or self.damaged or self.saved)
