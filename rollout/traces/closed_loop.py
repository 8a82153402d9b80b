"""Closed-loop CSV: `session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms`, a round a row.

Columns may stand in any order and others may stand beside them; rows of sessions may be mixed. `prefix_len`
is checked and not used: the context is what was appended and generated before, and hits come from the
store. The columns are those of TraceLab (arXiv 2606.30560).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rollout.traces.errors import TraceError
from rollout.traces.fields import Fields
from rollout.traces.session import Piece, Round, Session
from rollout.traces.trace_file import Line

COLUMNS = ("session_id", "round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms")


@dataclass(slots=True)
class _Rows:
    """What was read of one session."""

    rounds: list[Round] = field(default_factory=list)
    next_index: int = 0
    waiting_tokens: int = 0
    """Appended by rounds that generate nothing; they join the next one's."""
    appended_tokens: int = 0


def read_sessions(lines: Iterable[Line]) -> Iterator[Session]:
    """The sessions in the order in which they begin."""
    rows: dict[str, _Rows] = {}
    header: list[str] | None = None
    for line in lines:
        if header is None:
            header = _header(line)
            continue
        fields = _fields(header, line)
        session_id = fields.name_text("session_id")
        _add_round(rows.setdefault(session_id, _Rows()), session_id, fields)
    for session_id, found in rows.items():
        if found.rounds:
            yield Session(session_id, tuple(found.rounds))


def is_header(text: str) -> bool:
    """Whether the line looks like this format's first one."""
    return {"session_id", "round_idx"} <= {name.strip() for name in text.split(",")}


def _header(line: Line) -> list[str]:
    names = [name.strip() for name in next(csv.reader([line.text]))]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise TraceError(f"{line.where}: the header has no column {', '.join(missing)}")
    return names


def _fields(header: list[str], line: Line) -> Fields:
    try:
        values = next(csv.reader([line.text], strict=True))
    except csv.Error as error:
        raise TraceError(f"{line.where}: not CSV: {error}") from None
    if len(values) != len(header):
        raise TraceError(f"{line.where}: has {len(values)} fields, the header has {len(header)}")
    record: dict[str, object] = {}
    for name, value in zip(header, values, strict=True):
        text = value.strip()
        if name in COLUMNS and not text:
            raise TraceError(f"{line.where}: {name} is missing")
        record[name] = text if name == "session_id" else _number(text)
    return Fields(record, line.where)


def _number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _add_round(rows: _Rows, session_id: str, fields: Fields) -> None:
    index = fields.count("round_idx")
    if index != rows.next_index:
        raise TraceError(
            f"{fields.where}: round_idx of session {session_id} must be {rows.next_index}, got {index}; "
            "rounds count from 0 without gaps"
        )
    rows.next_index += 1
    fields.count("prefix_len")
    tokens = rows.waiting_tokens + fields.count("input_len")
    output_tokens = fields.count("output_len")
    wait_s = fields.seconds("tool_wait_after_ms") / 1000
    if not output_tokens:
        rows.waiting_tokens = tokens
        return
    if not tokens and not rows.rounds:
        raise TraceError(f"{fields.where}: input_len must be >= 1 in a session's first round, got 0")
    piece = Piece(f"{session_id}/appended", rows.appended_tokens, tokens)
    rows.rounds.append(Round((piece,) if tokens else (), output_tokens, wait_s))
    rows.appended_tokens += tokens
    rows.waiting_tokens = 0
