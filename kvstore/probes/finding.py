"""What a probe found, and how bad that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Verdict(Enum):
    """How a job fares with what was found."""

    OK = "OK"
    WARN = "WARN"
    """It works, slower or with less than the machine could give."""
    FAIL = "FAIL"
    """A job of this configuration cannot work, or not for long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    subject: str
    verdict: Verdict
    told: str
    """What is so, with its numbers."""
    advice: str = ""
    """What to do about it; empty where all is well."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The numbers again, by name with unit, for machines."""

    def answer(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "subject": self.subject,
            "verdict": self.verdict.value,
            "told": self.told,
            "advice": self.advice,
            "figures": dict(self.figures),
        }


@dataclass(frozen=True, slots=True)
class Probe:
    """Looks at one thing. It may raise, hang or end its process: whoever runs it makes a Finding of that."""

    subject: str
    look: Callable[[], Sequence[Finding]]
    measures: bool = False
    """It takes a time, so nothing else may run beside it."""
