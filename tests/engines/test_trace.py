"""What a paced run's timelines show: reads before the compute, loads beside it, and moved blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from engines.cluster import ClusterSpec
from engines.cluster_config import ClusterConfig
from engines.model.paced_spec import PacedSpec
from engines.timeline import Span
from engines.types import RequestId, SamplingParams
from tests.engines.local_cluster import running_cluster, with_store
from tests.engines.paced import PROFILE, paced_spec

LAYER_S = 0.5
SLOW = replace(PROFILE, rest_s=(LAYER_S, 0.0), decode_s=(1e-3, 0.0, 0.0))
"""Layers that take much longer than everything a slow machine does beside them."""


async def play(spec: ClusterSpec, *, slows_down: bool = False) -> list[Span]:
    """Two turns of one conversation; the second hits what the first has stored."""
    async with running_cluster(spec) as cluster:
        client = cluster.client_parts().client()
        context = client.open_context()
        for turn in range(2):
            context.append([turn + 1] * (800 if turn == 0 else 13))
            sampling = SamplingParams(max_tokens=5, temperature=0.0)
            running = asyncio.create_task(client.run_turn(context, RequestId(f"{turn}"), sampling, 60.0))
            if turn and slows_down:
                await cluster.nodes["prefill-0"].set_snic_rate(2e4)
            context.append((await running).token_ids)
            await cluster.pause(30)
            await cluster.resume()
        return await cluster.spans()


def spec_of(directory: Path, rates: ClusterConfig | None = None) -> ClusterSpec:
    spec = replace(paced_spec(directory), paced=PacedSpec(SLOW, scale=10, time_scale=1), trace_every=1)
    spec = replace(spec, scheduler=replace(spec.scheduler, read_plan="split"))
    return spec if rates is None else replace(spec, rates=rates)


def of_turn(spans: list[Span], turn: str, lane: str) -> list[Span]:
    """In order of time."""
    key = {"snic read": "turn"}.get(lane.rstrip(" 0123456789"), "turns")
    return sorted(
        (
            span
            for span in spans
            if span.lane.startswith(lane) and str(dict(span.details).get(key, "")).partition("#")[0] == turn
        ),
        key=lambda span: span.start_s,
    )


def end_s(span: Span) -> float:
    return span.start_s + span.duration_s


def never_overlap(spans: list[Span], is_one: Callable[[Span], bool]) -> bool:
    ordered = sorted(filter(is_one, spans), key=lambda span: span.start_s)
    return all(end_s(before) <= after.start_s + 1e-6 for before, after in pairwise(ordered))


def test_a_turn_is_read_then_computed_layer_by_layer_while_the_next_layer_loads(tmp_path: Path) -> None:
    spans = asyncio.run(play(spec_of(tmp_path)))
    reads = of_turn(spans, "1", "snic read")
    layers = [span for span in of_turn(spans, "1", "compute") if span.name.startswith("layer")]
    loads, moves = of_turn(spans, "1", "load"), of_turn(spans, "1", "cnic")
    assert [span.name for span in layers] == [f"layer {layer}" for layer in range(3)]
    assert [span.name for span in loads] == [f"load layer {layer}" for layer in range(3)]
    assert {span.name.split()[0] for span in moves} >= {"send"}
    assert max(map(end_s, reads)) <= layers[0].start_s
    for load, layer in zip(loads, layers, strict=True):
        assert end_s(load) <= layer.start_s
    for layer, following in zip(layers, loads[1:], strict=False):
        assert following.start_s <= end_s(layer)
        assert end_s(following) >= layer.start_s
    (forward,) = of_turn(spans, "1", "forward")
    assert forward.start_s <= layers[0].start_s
    assert end_s(layers[-1]) <= end_s(forward)
    (copy,) = (span for span in spans if span.lane == "copy-in" and span.name.startswith("1"))
    (decode,) = (span for span in spans if span.lane == "decode" and span.name.startswith("1"))
    assert end_s(forward) <= copy.start_s
    assert end_s(copy) <= decode.start_s
    assert dict(decode.details)["steps"] == 4
    for process, lane in {(span.process, span.lane) for span in spans}:
        assert never_overlap(spans, lambda span, at=(process, lane): (span.process, span.lane) == at), lane


def test_what_moves_to_the_other_side_is_marked_where_it_is_read(tmp_path: Path) -> None:
    rates = ClusterConfig(4e5, None, None, h2d="copy", traffic_classes=True)
    spec = with_store(spec_of(tmp_path, rates), read_chunk_bytes=4096)
    spans = asyncio.run(play(spec, slows_down=True))
    moved = [span for span in of_turn(spans, "1", "snic read") if dict(span.details)["moved"]]
    assert {span.process for span in moved} == {"decode-0"}
    assert all("moved" in span.name for span in moved)


def test_nothing_is_drawn_unless_asked_for(tmp_path: Path) -> None:
    assert asyncio.run(play(replace(spec_of(tmp_path), trace_every=0))) == []
