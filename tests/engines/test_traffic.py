"""Every byte an engine moves is counted, and there is no other way to move one.

The one-process cluster has a prefill node and a decode node, so bytes cross every hop. A block has 8 tokens.
"""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from engines.measured import NodeBytes
from engines.types import SamplingParams, TurnResult
from kvstore.layout import BlockLayout
from tests.engines.fakes import take_turn
from tests.engines.local_cluster import cluster_spec, running_cluster
from tests.engines.tiny_models import save_tiny_model

ENGINES = Path(__file__).parents[2] / "engines"

# Counted bytes ----------------------------------------------------------------------------------


def num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // 8)


def generated_blocks(turn: TurnResult) -> int:
    """Blocks that became full while decoding: the last token's KV is never computed."""
    return (turn.prompt_tokens + len(turn.token_ids) - 1) // 8 - turn.prompt_tokens // 8


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3"])
def test_the_traffic_managers_count_what_the_blocks_say(name: str, tmp_path: Path) -> None:
    path = save_tiny_model(name, tmp_path / "model")
    plan = ((21, 12), (3, 1), (40, 30), (5, 9))

    async def run() -> tuple[list[TurnResult], BlockLayout, dict[str, dict[str, int]], dict[str, NodeBytes]]:
        async with running_cluster(cluster_spec(str(path), tmp_path / "kv")) as cluster:
            client = cluster.client_parts().client()
            context = client.open_context()
            turns = [
                await take_turn(client, context, f"t{i}", SamplingParams(max_tokens=num), appended)
                for i, (appended, num) in enumerate(plan)
            ]
            await cluster.pause(30)
            await cluster.resume()
            moved = {str(e): await engine.moved_bytes() for e, engine in named_engines(cluster).items()}
            nodes = {str(node): moved for node, moved in (await cluster.storage_bytes()).items()}
            return turns, cluster.layout, moved, nodes

    turns, layout, moved, nodes = asyncio.run(run())
    block, token = layout.full_block_bytes, layout.num_layers * layout.token_bytes
    hits = sum(turn.hit_tokens // 8 for turn in turns)
    misses = sum(turn.prompt_tokens - turn.hit_tokens for turn in turns)
    copied_in = sum(num_blocks(turn.prompt_tokens) for turn in turns if len(turn.token_ids) > 1)
    generated = sum(generated_blocks(turn) for turn in turns)
    persisted = sum((turn.prompt_tokens - turn.hit_tokens) // 8 for turn in turns) + generated
    assert hits > 10
    assert generated > 5
    assert moved["prefill-0-0"] == {
        "host_to_device": hits * block,
        "device_to_host": 0,
        "engine_to_engine": misses * token + hits * block,
        "collective": 0,
    }
    assert moved["decode-0-0"] == {
        "host_to_device": copied_in * block,
        "device_to_host": generated * block,
        "engine_to_engine": 0,
        "collective": 0,
    }
    assert nodes["prefill-0"] == NodeBytes(read_prefill_side=hits * block)
    assert nodes["decode-0"] == NodeBytes(written=persisted * block)


def named_engines(cluster: object) -> dict[str, object]:
    return cluster.prefill_engines | cluster.decode_engines  # type: ignore[attr-defined]


# No other way -----------------------------------------------------------------------------------

# Where the bytes of staging memory may be looked at, and by whom.
MAY_MOVE_BYTES = {"traffic_manager.py", "loopback.py"}
MAY_USE_THE_STORE = {"node.py", "node_reads.py"}
READERS = {
    "checksum",
    "layer_checksums",
    "BlockRead",  # the store fills it, for the node agent
    "BlockWrite",
    "damaged_blocks",
}
MOVERS = {"kvstore.pieces", "engines.loopback"}
"""Whoever imports one moves bytes."""
VIEWS = {"slot", "tokens", "buffer"}
CONNECTOR = {"block_service.py", "worker_side.py"}


def strays(source: str, name: str) -> list[str]:
    """Lines of `source` that move bytes past the traffic manager."""
    tree = ast.parse(source)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MOVERS and name not in MAY_MOVE_BYTES:
            found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value).split(".")[-1]
        if node.attr in ("read", "write"):
            ours = name in (MAY_USE_THE_STORE if owner == "_store" else MAY_MOVE_BYTES)
        elif node.attr == "_slots":
            ours = name in MAY_MOVE_BYTES
        elif node.attr in VIEWS and "staging" in owner:
            ours = name in MAY_MOVE_BYTES or _reader(node, parents) in READERS
        else:
            continue
        if not ours:
            found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    return found


def _reader(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> str | None:
    """The function that a view of staging memory is handed to at once; None: it is not."""
    parent = parents[node]
    if isinstance(parent, ast.Call) and parent.func is node:
        node, parent = parent, parents[parent]
    while isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Load):
        node, parent = parent, parents[parent]
    if isinstance(parent, ast.keyword):
        node, parent = parent, parents[parent]
    if not isinstance(parent, ast.Call) or parent.func is node:
        return None
    return ast.unparse(parent.func).split(".")[-1]


def modules() -> list[Path]:
    """All that may serve a turn of our engines.

    A simulation has no bytes, one_turn.py is what a benchmark measures, and vLLM's connector serves a vLLM
    server, which has one process, no other node and no link to share.
    """
    paths = sorted(ENGINES.rglob("*.py"))
    others = {"one_turn.py", *CONNECTOR}
    return [path for path in paths if path.parent.name != "sim" and path.name not in others]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_no_module_but_the_traffic_manager_moves_bytes(path: Path) -> None:
    assert not strays(path.read_text(), path.name)


@pytest.mark.parametrize(
    "source",
    [
        "self._transport.write(region, ops, TrafficClass.KV, 1.0)",
        "traffic._transport.read(region, ops, TrafficClass.KV, 1.0)",
        "send = transport.write",
        "self._store.read(reads, 1.0)",
        "staging.slot(3)[:] = block",
        "self._traffic.staging.slot(3)[8:16] = block",
        "np.copyto(staging.tokens(3, 1, 0, 4), block)",
        "torch.from_numpy(self._staging.buffer)",
        "view = staging.tokens(3, 1, 0, 8)",
        "staging.slot(3).fill(0)",
        "self._traffic._slots[3] = block",
        "from kvstore.pieces import copy_all",
        "from engines.loopback import Loopback",
    ],
)
def test_a_way_around_the_traffic_manager_is_seen(source: str) -> None:
    assert len(strays(source, "decode.py")) == 1


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("self._store.read(reads, 1.0)", "node.py"),
        ("self._transport.write(region, ops, TrafficClass.KV, 1.0)", "traffic_manager.py"),
        ("found = layer_checksums(layout, staging.slot(3), 5)", "decode.py"),
        ("damaged_blocks(layout, staging.buffer, places, sums)", "decode.py"),
        ("BlockWrite(key, weights_id, self._staging.slot(3)[:size], checksums)", "node.py"),
        ("node = running.slot(3)", "decode.py"),
    ],
)
def test_looking_at_bytes_and_handing_them_on_is_allowed(source: str, name: str) -> None:
    assert not strays(source, name)
