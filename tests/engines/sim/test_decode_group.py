"""The closed form of decoding against one step after the other."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sim.decode_group import DecodeGpu, DecodeGroup
from engines.sim.events import Events
from engines.sim.link import Link
from engines.sim.nodes import SimNode
from engines.sim.transfers import ClosedForm
from engines.sim.turn import SimTurn
from engines.sim.workload import SimAgent
from engines.types import EngineId, EngineRole
from tests.engines.sim.some_clusters import LAYERS, PROFILE, cluster, rounds, run, spec

ONCE_S, ROW_S, TOKEN_S = 1e-2, 3e-3, 7e-5
DECODING = replace(PROFILE, decode_s=(ONCE_S, ROW_S, TOKEN_S))
ROW = st.tuples(st.integers(1, 50), st.integers(2, 40), st.integers(0, 60))
"""Of a turn: its prompt, its output, and when it comes, in hundredths of a second."""


def stepped(prompts: list[int], outputs: list[int], joined_s: list[float]) -> list[float]:
    """When each row makes its last token, on one GPU that goes from step to step."""
    end_s = [0.0] * len(prompts)
    made = [1] * len(prompts)
    now_s = 0.0
    while any(m < o for m, o in zip(made, outputs, strict=True)):
        rows = [i for i, m in enumerate(made) if m < outputs[i] and joined_s[i] <= now_s + 1e-9]
        if not rows:
            now_s = min(joined_s[i] for i, m in enumerate(made) if m < outputs[i])
            continue
        contexts = sum(prompts[i] + made[i] for i in rows)
        now_s += ONCE_S + ROW_S * len(rows) + TOKEN_S * contexts
        for i in rows:
            made[i] += 1
            end_s[i] = now_s
    return end_s


def in_closed_form(rows: list[tuple[int, int, int]]) -> list[float]:
    """The same of a DecodeGroup."""
    events = Events()
    of_spec = spec(profile=DECODING, oracle=True)
    gpu = DecodeGpu(
        EngineId("gpu"), SimNode(of_spec, 0, EngineRole.DECODE, Link("storage", math.inf)), 0, 10**6
    )
    end_s = [0.0] * len(rows)

    def finished(turn: SimTurn) -> None:
        end_s[turn.row] = events.now_s

    transfers = ClosedForm(events, LAYERS, layerwise=True)
    group = DecodeGroup([gpu], of_spec, events, transfers, lambda turn: None, finished)
    for number, (prompt, output, start) in enumerate(rows):
        turn = SimTurn(number, 0, prompt, output, 0)
        turn.decode_gpu = gpu
        events.at(start / 100, lambda turn: group.add(gpu, turn), turn)
    events.run()
    assert gpu.rows == gpu.context_tokens == gpu.num_admitted == 0
    return end_s


@settings(max_examples=200)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_rows_end_when_they_would_step_by_step(rows: list[tuple[int, int, int]]) -> None:
    prompts, outputs, starts = zip(*rows, strict=True)
    joined_s = [start / 100 for start in starts]
    assert in_closed_form(rows) == pytest.approx(stepped(list(prompts), list(outputs), joined_s))


def test_a_groups_step_takes_as_long_as_its_slowest_gpus() -> None:
    group = cluster(prefill_nodes=2, prefill_ep_nodes=2, decode_nodes=2, decode_ep_nodes=2)
    load = [SimAgent("long", rounds((40_000, 11))), SimAgent("short", rounds((10, 11)))]
    wide = replace(group, decode_kv_bytes=10**12, decode_staging_bytes=10**12, prefill_staging_bytes=10**12)
    turns = run(spec(wide, profile=DECODING, oracle=True, prefill_batch_tokens=10**6), load).turns
    assert turns.end_s[0] == pytest.approx(turns.end_s[1])
    step_s = ONCE_S + ROW_S + TOKEN_S * (40_000 + 1 + 9 / 2)
    assert turns.tpot_s[0] == pytest.approx(step_s, rel=1e-5)


def test_a_turn_waits_for_room_in_the_batch() -> None:
    narrow = cluster(decode_max_requests=1)
    load = [SimAgent(f"agent-{number}", rounds((10, 11))) for number in range(3)]
    turns = run(spec(narrow, profile=DECODING, oracle=True), load).turns
    gaps_s = np.diff(np.sort(turns.end_s))
    assert gaps_s == pytest.approx(10 * (ONCE_S + ROW_S + TOKEN_S * (11 + 9 / 2)))
