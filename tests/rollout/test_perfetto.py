from __future__ import annotations

import json
from pathlib import Path

from engines.timeline import Span
from rollout.perfetto import write_trace

SPANS = [
    Span("node-decode-0", "snic", "read", 100.5, 0.25, (("blocks", 4),)),
    Span("prefill-0-0", "compute", "layer 0", 100.75, 0.001, (("request", "a#1"),)),
    Span("prefill-0-0", "cnic", "send", 100.0, 0.5, ()),
]


def test_every_span_is_an_event_on_a_named_lane_in_order_of_time(tmp_path: Path):
    path = tmp_path / "trace.json"
    assert write_trace(path, SPANS) == 3
    events = json.loads(path.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    drawn = [e for e in events if e["ph"] == "X"]
    assert [e["name"] for e in drawn] == ["send", "read", "layer 0"]
    assert [(e["ts"], e["dur"]) for e in drawn] == [(0, 5e5), (5e5, 2.5e5), (7.5e5, 1e3)]
    assert [(names[e["pid"], 0], names[e["pid"], e["tid"]]) for e in drawn] == [
        ("prefill-0-0", "cnic"),
        ("node-decode-0", "snic"),
        ("prefill-0-0", "compute"),
    ]
    assert drawn[1]["args"] == {"blocks": 4}


def test_a_run_without_spans_writes_an_empty_picture(tmp_path: Path):
    assert write_trace(tmp_path / "trace.json", []) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []
