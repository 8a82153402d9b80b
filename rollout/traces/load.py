"""Reads a trace in whichever format it is: told by the content of the first line, never by the file's name.

`trace` is a file, or a folder of files of one format or several (kv-cache-tester keeps a session a file), or
the name of a made one with the statistics of the paper's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from itertools import chain
from pathlib import Path

from rollout.traces import bailian, closed_loop, mooncake, weka
from rollout.traces.errors import TraceError
from rollout.traces.fields import Fields, as_object, json_object
from rollout.traces.paperlike import PAPER_SETS, paperlike_sessions
from rollout.traces.session import Session
from rollout.traces.trace_file import Line, read_lines, read_text

FORMATS = "closed-loop CSV, WEKA JSON, Mooncake JSONL, Bailian JSONL"
DEFAULT_SAMPLE = "closed_loop.csv"
_LINE_FORMATS: dict[str, Callable[[Iterable[Line]], Iterator[Session]]] = {
    "closed-loop": closed_loop.read_sessions,
    "mooncake": mooncake.read_sessions,
    "bailian": bailian.read_sessions,
}


def samples_folder() -> Path:
    """The small samples that ship with the package, one of each format."""
    return Path(str(resources.files("rollout") / "traces" / "samples"))


def load_sessions(trace: str | None) -> list[Session]:
    """The sessions of the trace, of the bundled sample if None; raises TraceError in one line."""
    if trace in PAPER_SETS:
        return paperlike_sessions(trace)
    path = samples_folder() / DEFAULT_SAMPLE if trace is None else Path(trace)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"trace {path} is a folder without files")
    sessions = [session for file in files for session in _read(file)]
    if not sessions:
        raise TraceError(f"trace {path} has no session that generates a token")
    return sessions


def _read(path: Path) -> Iterator[Session]:
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        raise TraceError(f"trace {path} is empty")
    kind = _format_of(first)
    if kind in _LINE_FORMATS:
        return _LINE_FORMATS[kind](chain([first], lines))
    if kind == "weka":
        return _weka_sessions(json_object(line.text, line.where) for line in chain([first], lines))
    return _weka_sessions(_json_file(path))


def _format_of(first: Line) -> str:
    """A key of _LINE_FORMATS; `weka`: an object a line; `file`: one JSON value over many lines."""
    text = first.text.strip()
    if closed_loop.is_header(text):
        return "closed-loop"
    if not text.startswith(("{", "[")):
        raise _unknown(first)
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        return "file"
    if isinstance(record, list):
        return "file"
    if "requests" in record:
        return "weka"
    if "chat_id" in record or "parent_chat_id" in record:
        return "bailian"
    if "hash_ids" in record or {"input_length", "output_length"} & set(record):
        return "mooncake"
    raise _unknown(first)


def _json_file(path: Path) -> Iterator[Fields]:
    """A file that is one session or a list of them."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise TraceError(f"{path}:{line}: not JSON: {error}") from None
    values = value if isinstance(value, list) else [value]
    for place, each in enumerate(values):
        fields = as_object(each, f"{path}: session {place}" if isinstance(value, list) else str(path))
        if "requests" not in fields.record:
            raise _unknown(Line(path, 1, text[:200]))
        yield fields


def _weka_sessions(objects: Iterable[Fields]) -> Iterator[Session]:
    for fields in objects:
        session = weka.read_session(fields)
        if session is not None:
            yield session


def _unknown(first: Line) -> TraceError:
    shown = first.text.strip()
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return TraceError(f"{first.where}: unknown trace format, known are {FORMATS}; it begins {shown!r}")
