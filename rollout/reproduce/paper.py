"""What the paper says of a figure, how well it says it, and how near ours has to come.

Values are of DualPath (arXiv 2602.21548). `stated`: in its text or a table. `read off`: from a figure, by
others, to about 5 %. `assumed`: what the value was measured with is not told, and is taken to be what the row
names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["stated", "read off", "assumed"]


@dataclass(frozen=True, slots=True)
class PaperValue:
    """One number of the paper."""

    value: float
    source: Source
    tolerance: float | None
    """How far ours may be from it, in its unit; None: told, not judged."""

    @classmethod
    def within(cls, share: float, value: float, source: Source = "stated") -> PaperValue:
        """To be met within a share of itself."""
        return cls(value, source, share * abs(value))

    @classmethod
    def told(cls, value: float, source: Source = "stated") -> PaperValue:
        """Beside ours, without a goal."""
        return cls(value, source, None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside the paper's."""

    row: str
    """The family it belongs to, such as `ablation`."""
    name: str
    setup: str
    ours: float
    unit: str
    paper: PaperValue | None = None
    """None: the paper has no such number."""
    at_most: float | None = None
    """A goal of ours where the paper has none."""

    @property
    def met(self) -> bool | None:
        """None where nothing is judged."""
        if self.at_most is not None:
            return self.ours <= self.at_most
        if self.paper is None or self.paper.tolerance is None:
            return None
        return abs(self.ours - self.paper.value) <= self.paper.tolerance
