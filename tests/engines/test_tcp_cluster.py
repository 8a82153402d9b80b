"""Engines and nodes over the TCP transport: the same tokens as over shared memory, and only for the job."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from engines.cluster import ClusterSpec
from engines.errors import TurnFailed
from engines.types import TurnResult
from kvstore.job_token import JobToken
from kvstore.open_transport import TransportSpec
from kvstore.tcp_transport import TcpTransport
from kvstore.transport_config import TransportConfig
from tests.engines.conversations import SAMPLING, assert_same, conversation, converse
from tests.engines.fakes import Parts, take_turn
from tests.engines.local_cluster import cluster_spec, running_cluster
from tests.engines.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("qwen3", tmp_path_factory.mktemp("model")))


def over_tcp(spec: ClusterSpec) -> ClusterSpec:
    return replace(
        spec, transport=TransportSpec(TransportConfig("tcp", "127.0.0.1", None, None, None), JobToken.draw())
    )


def test_tokens_are_the_same_over_tcp_as_over_shared_memory(model_path: str, tmp_path: Path) -> None:
    async def over_both() -> tuple[list[TurnResult], list[TurnResult]]:
        shm = await conversation(cluster_spec(model_path, tmp_path / "shm"))
        async with running_cluster(over_tcp(cluster_spec(model_path, tmp_path / "tcp"))) as cluster:
            region = await cluster.nodes["decode-0"].region()
            assert region.address.startswith("tcp:127.0.0.1:")
            tcp = await converse(cluster)
        assert tcp.hit_tokens == shm.hit_tokens
        return tcp.turns, shm.turns

    assert_same(*asyncio.run(over_both()))


def test_an_engine_of_another_job_moves_nothing(model_path: str, tmp_path: Path) -> None:
    stranger = Parts(transport=lambda real, name: TcpTransport(JobToken.draw()))

    async def run() -> None:
        async with running_cluster(over_tcp(cluster_spec(model_path, tmp_path)), stranger.spawn) as cluster:
            client = cluster.client_parts().client()
            with pytest.raises(TurnFailed, match="the token of the same job"):
                await take_turn(client, client.open_context(), "turn-0", SAMPLING, 20)

    asyncio.run(run())
