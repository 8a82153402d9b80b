"""An EP group's rounds: forwards begin together and end with the slowest, and nobody waits for the dead."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from engines.model.forward_rounds import ForwardRounds, SharedRounds
from engines.model.paced_runner import PacedRunner
from engines.model.runner import GroupLinks, PrefillRow
from engines.scheduling.estimate import PromptWork
from engines.types import RequestId, SamplingParams
from tests.engines.local_cluster import running_cluster
from tests.engines.paced import PROFILE, SPEC, paced_spec
from tests.engines.test_paced_runner import NOTHING, STEP, Clock, prefilled, random_ids


@pytest.fixture
def rounds() -> ForwardRounds:
    return ForwardRounds(np.zeros(3), nullcontext())


def test_a_round_lasts_as_long_as_its_slowest_forward(rounds):
    assert rounds.join(100.0, 1.0) == 1
    assert rounds.join(100.05, 2.0) == 1
    assert rounds.join(100.1, 0.5) == 1
    assert rounds.end_s(1) == 102.05


def test_who_comes_in_the_middle_of_a_round_waits_for_the_next(rounds):
    rounds.join(100.0, 1.0)
    assert rounds.join(100.5, 1.0) is None
    assert rounds.end_s() == 101.0
    assert rounds.join(101.0, 1.0) == 2
    assert rounds.end_s(2) == 102.0


def test_a_forward_that_gets_late_holds_its_round_open(rounds):
    rounds.join(100.0, 1.0)
    rounds.extend(1, 103.0)
    rounds.extend(1, 102.0)
    assert rounds.end_s(1) == 103.0


def test_a_straggler_of_an_old_round_delays_no_new_one(rounds):
    rounds.join(100.0, 1.0)
    rounds.join(101.0, 1.0)
    rounds.extend(1, 500.0)
    assert rounds.end_s(1) == 0.0
    assert rounds.end_s(2) == 102.0


def test_a_fast_forward_ends_with_the_slow_one_of_its_round(rounds):
    clock = Clock()
    paced = PacedRunner(SPEC, STEP, pace=clock.pace)
    paced.link(GroupLinks(lambda nbytes: None, rounds))
    rounds.join(100.0, 1.5)  # of an engine that then says no more: it may be dead
    prefilled(paced, [PrefillRow(0, random_ids(40, 1))], [NOTHING])
    assert clock.now_s == pytest.approx(101.5)
    assert paced.forwards[0].round == 1
    prefilled(paced, [PrefillRow(0, random_ids(40, 2))], [NOTHING])
    assert clock.now_s == pytest.approx(101.5 + SPEC.step_times.forward_s(PromptWork.of(0, 40)))
    assert paced.forwards[1].round == 2


def test_rounds_are_shared_by_all_who_attach():
    made = SharedRounds.create("group")
    other = SharedRounds.attach(made.handle)
    assert made.rounds().join(100.0, 1.0) == 1
    assert other.rounds().join(100.05, 3.0) == 1
    assert made.rounds().end_s(1) == 103.05
    for shared in (other, made):
        shared.close()


def test_collectives_pass_while_a_layer_runs_and_make_it_late_only_if_they_take_longer():
    profile = replace(PROFILE, collective_bytes=(1000, 3000), decode_collective_s=(0.0, 1e-5))
    clock, sent = Clock(), []
    paced = PacedRunner(replace(SPEC, profile=profile), STEP, pace=clock.pace)
    layer_s = SPEC.step_times.layer_s(PromptWork.of(0, 40))
    took_s = iter([layer_s / 2, layer_s / 2, 1.0])

    def send(nbytes: int) -> None:
        sent.append(nbytes)
        clock.now_s += next(took_s)

    paced.link(GroupLinks(send, None))
    prefilled(paced, [PrefillRow(0, random_ids(40, 1))], [NOTHING])
    assert sent == [40 * 100] * 3
    assert clock.now_s - 100 == pytest.approx(2 * layer_s + 1.0)


def test_a_group_of_engines_computes_in_rounds(tmp_path):
    spec = paced_spec(tmp_path, group_lockstep=True, prefill_engines_per_node=2)

    async def play():
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()

            async def turn(name: str) -> int:
                context = client.open_context()
                context.append(random_ids(50, len(name)))
                sampling = SamplingParams(max_tokens=2, temperature=0.0)
                return len((await client.run_turn(context, RequestId(name), sampling, 30.0)).token_ids)

            lengths = await asyncio.gather(*(turn("x" * number) for number in range(1, 7)))
            return lengths, [await engine.forwards() for engine in cluster.prefill_engines.values()]

    lengths, forwards = asyncio.run(play())
    assert lengths == [2] * 6
    done = [forward for own in forwards for forward in own]
    assert sum(forward.new_tokens for forward in done) == 6 * 50
    assert all(forward.round > 0 for forward in done)


def test_an_engine_counts_the_bytes_of_its_collectives(tmp_path):
    spec = paced_spec(tmp_path)
    spec = replace(spec, paced=replace(SPEC, profile=replace(PROFILE, collective_bytes=(1000, 3000))))

    async def play():
        async with running_cluster(spec) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            context.append(random_ids(50, 1))
            await client.run_turn(
                context, RequestId("one"), SamplingParams(max_tokens=3, temperature=0), 30.0
            )
            engines = (*cluster.prefill_engines.values(), *cluster.decode_engines.values())
            return [(await engine.moved_bytes())["collective"] for engine in engines]

    # 3 layers at a tenth of the bytes: 50 tokens in prefill, two steps of one in decode
    assert asyncio.run(play()) == [3 * 50 * 100, 3 * 2 * 300]
