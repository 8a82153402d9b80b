"""Puts what agents of a replay had in their contexts before it into the store, so that it can be a hit.

A paced engine's KV is a function of the tokens, so nodes write it as engines would have written it; a model's
is computed. Nobody times this: it is no part of the replay.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from engines.cluster import EngineCluster
from engines.model.kv_pattern import VOCABULARY
from engines.model.paced_history import PacedHistory
from engines.model.paced_spec import PacedSpec
from kvstore.keys import chain_root
from rollout.errors import RolloutError
from rollout.replay_task import ReplayTask
from rollout.replay_tokens import TokenSource

_COMPUTED_AT_ONCE = 32


async def write_histories(tasks: Sequence[ReplayTask], cluster: EngineCluster, paced: PacedSpec) -> int:
    """Have every node write the histories of some of the tasks; the tokens written.

    Raises RolloutError if the store does not take them all.
    """
    tokens, layout, weights = TokenSource(range(VOCABULARY)), cluster.layout, cluster.weights
    root = chain_root(weights.weights_id, layout.format)

    async def write(node: Any, histories: Sequence[ReplayTask]) -> int:
        num_blocks = 0
        for task in histories:
            ids = tokens.spell(task.session.history)
            history = PacedHistory(paced, ids, root, layout.block_tokens)
            stored, wanted = int(await node.put(history, weights.weights_id)), len(ids) // layout.block_tokens
            if stored < wanted:
                raise RolloutError(
                    f"the store took {stored} of {wanted} blocks of the history of {task.task_id}; "
                    "make room at kvstore.path or lower num_agents"
                )
            num_blocks += stored
        return num_blocks

    nodes = list(cluster.nodes.values())
    written = await asyncio.gather(
        *(write(node, tasks[index :: len(nodes)]) for index, node in enumerate(nodes))
    )
    return sum(written) * layout.block_tokens


async def compute_histories(tasks: Sequence[ReplayTask], workers: Sequence[Any]) -> int:
    """Have the agent workers take the histories through the engines as prompts; the tokens computed.

    Raises EngineError.
    """
    gate = asyncio.Semaphore(_COMPUTED_AT_ONCE)

    async def compute(worker: Any, task: ReplayTask) -> int:
        async with gate:
            return int(await worker.prepare(task))

    dealt = zip(itertools.cycle(workers), tasks, strict=False)
    return sum(await asyncio.gather(*(compute(worker, task) for worker, task in dealt)))
