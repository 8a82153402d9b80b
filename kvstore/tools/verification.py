"""What a verification found, for machines and for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kvstore.tools.output import DASH, duration, make_table, size
from kvstore.tools.record_check import Fault


@dataclass(frozen=True, slots=True)
class BadBlock:
    """One place of a store that does not hold what it should."""

    segment: str
    sealed: bool
    """Of an unsealed one, the writer may be at this record, or may have died over it."""
    offset: int
    """Of the record in its file, in bytes."""
    fault: Fault

    def answer(self) -> dict[str, Any]:
        """For machines."""
        return {
            "segment": self.segment,
            "sealed": self.sealed,
            "offset": self.offset,
            "key": None if self.fault.key is None else self.fault.key.hex(),
            "reason": self.fault.reason,
            "layers": list(self.fault.layers),
        }


@dataclass(slots=True)
class Verification:
    """Everything that was read and what of it is bad."""

    path: Path
    num_segments: int = 0
    num_records: int = 0
    """Records read, the bad ones too."""
    nbytes: int = 0
    """Of all segment files."""
    took_s: float = 0.0
    bad_blocks: list[BadBlock] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "segments": self.num_segments,
            "blocks": self.num_records,
            "bytes": self.nbytes,
            "seconds": round(self.took_s, 3),
            "bad_blocks": [bad.answer() for bad in self.bad_blocks],
        }

    def report(self) -> list[RenderableType]:
        """For people."""
        read = (
            f"{self.num_records:,} blocks of {self.num_segments:,} segments, {size(self.nbytes)}, "
            f"read in {duration(self.took_s)}"
        )
        if not self.bad_blocks:
            return [Text.assemble((f"{self.path}: every block is whole", "bold green"), f"; {read}")]
        table = make_table("segment", "offset", "key", "what is wrong", "layers", left=(0, 2, 3, 4))
        for bad in self.bad_blocks:
            table.add_row(
                bad.segment + ("" if bad.sealed else " (unsealed)"),
                str(bad.offset),
                DASH if bad.fault.key is None else bad.fault.key.hex(),
                bad.fault.reason,
                ranges(bad.fault.layers) or DASH,
            )
        count = f"{len(self.bad_blocks):,} bad block{'s' * (len(self.bad_blocks) != 1)}"
        return [Text.assemble((f"{self.path}: {count}", "bold red"), f"; {read}"), table]


def ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers as `0-3 7 9-10`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(map(str, run)) for run in runs)
