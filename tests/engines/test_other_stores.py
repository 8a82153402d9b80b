"""The same conversation on stores that are no local directory: the same tokens, and the same hits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.engines.conversations import assert_same, conversation
from tests.engines.local_cluster import cluster_spec, with_store
from tests.engines.tiny_models import save_tiny_model
from tests.kvstore.mooncake_cluster import MooncakeCluster, skip_without_mooncake


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


def test_a_conversation_on_mooncake_is_that_on_an_ssd(model_path: str, tmp_path: Path) -> None:
    skip_without_mooncake()
    spec = cluster_spec(model_path, tmp_path / "kv")
    on_ssd = asyncio.run(conversation(spec))
    with MooncakeCluster(tmp_path / "master.log") as cluster:
        changed = with_store(spec, kind="mooncake", mooncake=cluster.config)
        on_mooncake = asyncio.run(conversation(changed))
    assert_same(on_mooncake.turns, on_ssd.turns)
    assert on_mooncake.hit_tokens == on_ssd.hit_tokens
    assert on_ssd.hit_tokens[-1] > 0
    assert not any(on_mooncake.bad_reads.values())
