"""Writes what engines and nodes did as trace.json, which Perfetto and chrome://tracing open.

A process in the picture is an engine or a node, a thread one of its lanes. It does not know what the spans
mean. Format: the Trace Event Format's complete events; times in microseconds from the first span.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engines.timeline import Span

_US = 1e6


def write_trace(path: Path, spans: Iterable[Span]) -> int:
    """Write the file, its spans in order of time; returns how many there are."""
    ordered = sorted(spans, key=lambda span: span.start_s)
    path.write_text(json.dumps({"traceEvents": trace_events(ordered), "displayTimeUnit": "ms"}))
    return len(ordered)


def trace_events(spans: list[Span]) -> list[dict[str, Any]]:
    """Events of `spans`, and before them the names of every process and lane."""
    processes = {name: number for number, name in enumerate(sorted({span.process for span in spans}), 1)}
    lanes = {
        lane: number for number, lane in enumerate(sorted({(span.process, span.lane) for span in spans}), 1)
    }
    first_s = min((span.start_s for span in spans), default=0.0)
    return [
        *(_name("process_name", number, 0, name) for name, number in processes.items()),
        *(_name("thread_name", processes[lane[0]], number, lane[1]) for lane, number in lanes.items()),
        *(
            {
                "ph": "X",
                "name": span.name,
                "cat": span.lane,
                "pid": processes[span.process],
                "tid": lanes[span.process, span.lane],
                "ts": round((span.start_s - first_s) * _US, 3),
                "dur": round(span.duration_s * _US, 3),
                "args": dict(span.details),
            }
            for span in spans
        ),
    ]


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
