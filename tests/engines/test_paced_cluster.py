"""Paced engines in a whole cluster: real store, staging and transport, each byte checked where it arrives."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from engines.cluster import start_cluster
from engines.errors import EngineError
from engines.types import PromptKeys, RequestId, SamplingParams
from tests.engines.fakes import Parts
from tests.engines.local_cluster import running_cluster
from tests.engines.paced import next_id, paced_spec

GREEDY = SamplingParams(max_tokens=11, temperature=0.0)


async def converse(cluster, num_turns):
    """Turns of a conversation, each checked against what its context must be followed by."""
    client = cluster.client_parts().client()
    context, results = client.open_context(), []
    for turn in range(num_turns):
        ids = np.random.default_rng(turn).integers(0, 256, 40 if turn == 0 else 13)
        context.append([int(token) for token in ids])
        result = await client.run_turn(context, RequestId(f"turn-{turn}"), GREEDY, 30.0)
        keys = PromptKeys(context.root, ())
        for token in result.token_ids:
            assert token == next_id(keys, context.token_ids)
            context.append([token])
        results.append(result)
    return results


@pytest.mark.parametrize("plan", ["basic", "split"])
def test_a_conversation_goes_on_from_stored_kv(tmp_path, plan):
    spec = paced_spec(tmp_path)
    spec = replace(spec, scheduler=replace(spec.scheduler, read_plan=plan))

    async def play():
        async with running_cluster(spec) as cluster:
            return await converse(cluster, 6), await cluster.token_counts()

    results, counts = asyncio.run(play())
    assert all(len(result.token_ids) == 11 for result in results)
    hits = [result.hit_tokens for result in results]
    assert hits[0] == 0
    assert hits[1:] == sorted(hits[1:])
    assert hits[-1] >= 96
    assert counts["prefill-0-0"].first == 6
    assert counts["decode-0-0"].decode == 60


class FlippingRunner:
    """A runner into whose HBM a bit comes flipped, in the last layer of every hit."""

    def __init__(self, runner):
        self._runner = runner

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def prefill(self, rows, feed):
        return self._runner.prefill(rows, FlippingFeed(feed, self._runner.layout.num_layers - 1))


class FlippingFeed:
    def __init__(self, feed, layer):
        self._feed = feed
        self._layer = layer

    def load(self, layer):
        buffer = self._feed.load(layer)
        if layer == self._layer:
            buffer[0, 5, 3] ^= 16
        return buffer

    def store(self, layer):
        self._feed.store(layer)


def test_a_turn_whose_hit_is_damaged_on_the_way_into_hbm_fails(tmp_path):
    """Past every checksum there is; the first turn has no hit, so nothing of it is looked at."""
    parts = Parts(runner=lambda runner, name: FlippingRunner(runner) if "prefill" in name else runner)
    spec = paced_spec(tmp_path)
    spec = replace(spec, scheduler=replace(spec.scheduler, max_attempts=1))

    async def play():
        cluster = await start_cluster(parts.spawn, spec)
        try:
            client = cluster.client_parts().client()
            context = client.open_context()
            context.append([7] * 40)
            result = await client.run_turn(context, RequestId("first"), GREEDY, 30.0)
            context.append(result.token_ids)
            context.append([9] * 10)
            with pytest.raises(EngineError, match="token 5 of layer 2"):
                await client.run_turn(context, RequestId("second"), GREEDY, 30.0)
        finally:
            await cluster.close()

    asyncio.run(play())


def test_stop_strings_are_refused(tmp_path):
    async def play():
        async with running_cluster(paced_spec(tmp_path)) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            context.append([1, 2, 3])
            with pytest.raises(EngineError, match="stop_strings"):
                await client.run_turn(context, RequestId("a"), replace(GREEDY, stop_strings=("x",)), 30.0)

    asyncio.run(play())


def test_a_paced_engines_process_does_not_import_transformers():
    code = "import sys, engines.processes, engines.model.paced_runner; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
