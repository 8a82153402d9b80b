"""The fields of one JSON record of a trace, each checked as it is taken."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from rollout.traces.errors import TraceError

_MOST_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Fields:
    """A record and where it stands; a field that is missing or wrong raises TraceError and is named."""

    record: dict[str, object]
    where: str

    def count(self, name: str, at_least: int = 0) -> int:
        """A whole number."""
        value = self._get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(name, "a whole number")
        if value < at_least:
            raise self.wrong(name, f">= {at_least}")
        return value

    def seconds(self, name: str, default: float | None = None) -> float:
        """A finite number of at least 0."""
        if default is not None and self.record.get(name) is None:
            return default
        value = self._get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(name, "a number")
        if value < 0:
            raise self.wrong(name, ">= 0")
        return float(value)

    def name_text(self, name: str) -> str:
        """A text or a number, as text."""
        value = self._get(name)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self.wrong(name, "a text or a number")
        return str(value)

    def list_of(self, name: str, kind: type) -> list[object]:
        """A list of `kind`, such as int or dict."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        for place, item in enumerate(value):
            if type(item) is not kind:
                raise TraceError(f"{self.where}: {name}[{place}] must be {_KINDS[kind]}, got {_shown(item)}")
        return value

    def wrong(self, name: str, wanted: str) -> TraceError:
        return TraceError(f"{self.where}: {name} must be {wanted}, got {_shown(self.record[name])}")

    def _get(self, name: str) -> object:
        if name not in self.record:
            raise TraceError(f"{self.where}: {name} is missing")
        return self.record[name]


_KINDS = {int: "a whole number", dict: "an object"}


def json_object(text: str, where: str) -> Fields:
    """A line's JSON object."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON: {error}") from None
    return as_object(value, where)


def as_object(value: object, where: str) -> Fields:
    if not isinstance(value, dict):
        raise TraceError(f"{where}: must be a JSON object, got {_shown(value)}")
    return Fields(value, where)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
