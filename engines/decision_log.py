"""Everything that the placement policy was told and what it decided, a JSON line each, to be decided again.

The policy is a function of the calls made to it. So a log that a run has written, read by `replay` into a new
ClusterPlacement (the one a simulator runs), must give the same engines, the same queues and the same turns
taken back; a difference says that the policy looked at something else. Paths and files are the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, BinaryIO, cast

from engines.scheduling.cluster_placement import ClusterPlacement
from engines.scheduling.engine_choice import EnginePair
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.settings import SchedulingSettings
from engines.types import EngineInfo, EngineRole

_OF_CLUSTER = ("add_node", "add_engine")
_OF_TURNS = ("submit", "prefilled", "finished", "withdraw")
_OF_READS = ("plan_reads", "move_reads", "end_reads", "report_reads", "set_late_reads")
_TOLD = frozenset((*_OF_CLUSTER, *_OF_TURNS, *_OF_READS))
"""Calls that decide nothing."""
_ASKED = frozenset(("fetch_once", "read_tokens_ahead", "remove_engine"))


class DecisionsDiffer(Exception):
    """A replayed call gave another answer; the message names the line and both."""


class _Recorder:
    """A placement whose calls are written down. All else is the placement's own."""

    def __init__(self, placement: ClusterPlacement, log: BinaryIO) -> None:
        self._placement = placement
        self._log = log

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._placement, name)
        if name not in _TOLD and name not in _ASKED:
            return found

        def call(*args: Any) -> Any:
            answer = found(*args)
            line = {"call": name, "args": [_plain(arg) for arg in args]}
            if name in _ASKED:
                line["answer"] = _plain(answer)
            self._log.writelines([_line(line)])
            return answer

        self.__dict__[name] = call
        return call


def open_placement(
    settings: SchedulingSettings,
    *,
    load_limit_tokens: int,
    read_queue_limit_tokens: int,
    log: BinaryIO | None = None,
) -> ClusterPlacement:
    """A new placement that writes a line to `log` for each call, the first with what it was made of."""
    limits = {"load_limit_tokens": load_limit_tokens, "read_queue_limit_tokens": read_queue_limit_tokens}
    placement = ClusterPlacement(settings, **limits)
    if log is None:
        return placement
    log.writelines([_line({"settings": settings, **limits})])
    return cast(ClusterPlacement, _Recorder(placement, log))


def replay(lines: Iterable[bytes]) -> int:
    """Decide everything in a log again; how many answers were compared. Raises DecisionsDiffer."""
    rows = iter(lines)
    head = json.loads(next(rows))
    names = [field.name for field in fields(SchedulingSettings)]
    settings = SchedulingSettings(**{name: head["settings"][name] for name in names})
    placement = ClusterPlacement(
        settings,
        load_limit_tokens=head["load_limit_tokens"],
        read_queue_limit_tokens=head["read_queue_limit_tokens"],
    )
    pairs: dict[str, EnginePair] = {}
    num_compared = 0
    for number, line in enumerate(rows, 2):
        row = json.loads(line)
        answer = getattr(placement, row["call"])(*_arguments(row["call"], row["args"], pairs))
        if row["call"] == "fetch_once":
            pairs.update({pair.turn.request_id: pair for pair in answer})
        elif row["call"] == "finished":
            pairs.pop(row["args"][0], None)
        if row["call"] in _ASKED:
            num_compared += 1
            again = json.loads(_line(_plain(answer)))
            if again != row["answer"]:
                raise DecisionsDiffer(
                    f"line {number}: {row['call']} answered {row['answer']}, and when replayed {again}"
                )
    return num_compared


def _plain(value: Any) -> Any:
    """What stands for a value in a log: of a pair its turn and engines, as a pair is an earlier answer."""
    if isinstance(value, EnginePair):
        return [value.turn.request_id, value.prefill.engine_id, value.decode.engine_id]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _arguments(call: str, args: list[Any], pairs: Mapping[str, EnginePair]) -> list[Any]:
    if call == "submit":
        return [QueuedTurn(**args[0] | {"failed_engines": frozenset(args[0]["failed_engines"])})]
    if call == "add_engine":
        return [EngineInfo(**args[0] | {"role": EngineRole(args[0]["role"])})]
    if call in ("plan_reads", "read_tokens_ahead"):
        return [pairs[args[0][0]], *args[1:]]
    return args


def _line(value: Any) -> bytes:
    return json.dumps(value, default=_as_json).encode() + b"\n"


def _as_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, frozenset):
        return sorted(value)
    return value.item()  # a number of numpy's
