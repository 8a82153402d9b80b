"""Who gets a GPU. Ray's GPUs are logical: it deals out ids whether or not there is a device."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from engines.types import NodeId
from rollout.actors import RayCluster
from rollout.errors import UserError

pytestmark = pytest.mark.ray
PLACES = (("a", NodeId("prefill-0")), ("b", NodeId("decode-0")), ("c", NodeId("decode-0")))


class Looker:
    """Sees what its process is told about GPUs."""

    async def sees(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")


@contextmanager
def cluster_with(num_gpus: int) -> Iterator[RayCluster]:
    ray.init(num_cpus=2, num_gpus=num_gpus, include_dashboard=False, log_to_driver=False)
    try:
        nodes = [node for _, node in PLACES]
        gpu_actors = {node: nodes.count(node) for node in nodes}
        cluster = RayCluster(None, num_nodes=2, start_deadline_s=60, gpu_actors=gpu_actors)
        yield cluster
        cluster.close()
    finally:
        ray.shutdown()


async def look(cluster: RayCluster, *, gpu: bool) -> list[str | None]:
    lookers = [await cluster.spawn(Looker, name=name, node=node, gpu=gpu) for name, node in PLACES]
    return [await looker.sees() for looker in lookers]


@pytest.mark.parametrize(("num_gpus", "ids"), [(1, ["0", "0", "0"]), (3, ["0", "1", "2"])])
def test_engines_share_the_gpus_there_are_and_nobody_else_sees_one(num_gpus: int, ids: list[str]) -> None:
    with cluster_with(num_gpus) as cluster:
        seen = asyncio.run(look(cluster, gpu=True))
        assert sorted(map(str, seen)) == ids
        assert asyncio.run(look(cluster, gpu=False)) == ["", "", ""]


def test_without_a_gpu_one_line_says_what_to_change() -> None:
    with cluster_with(0) as cluster, pytest.raises(UserError, match=r"use engines\.device=cpu"):
        asyncio.run(look(cluster, gpu=True))
