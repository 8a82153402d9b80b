"""Where a context is read ahead while its agent waits for a tool, and who then gets its next turn.

Pure policy, ours; DualPath (arXiv 2602.21548) reads a hit when its turn has been placed. A context goes to
the node that will then hold most of it, so to the one that kept it where that has room. The pull back there
is bounded: it is worth some load of an engine, in proportion to what need not be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engines.types import NodeId


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """A prefill node, as a context that is to be read ahead sees it. Blocks are the context's."""

    node_id: NodeId
    num_kept: int
    """Blocks that lie in its memory already."""
    num_room: int
    """Most blocks that can be held there, those that lie there included."""
    queue_tokens: int
    """That the node has still to read for turns."""


def choose_node(memories: Iterable[NodeMemory], num_blocks: int) -> NodeMemory | None:
    """The node that can hold most of the context, then keeps most of it, then has least to read.

    None where no node holds any.
    """
    able = [memory for memory in memories if memory.num_room > 0]
    return min(able, key=lambda memory: _rank(memory, num_blocks), default=None)


def pulls(*, pull: float, kept_tokens: int, load_tokens: int, least_tokens: int) -> bool:
    """Whether an engine of the node that keeps `kept_tokens` of the prompt gets its turn.

    `load_tokens` is that engine's load, `least_tokens` that of the engine that would get it otherwise.
    """
    return load_tokens - least_tokens <= pull * kept_tokens


def _rank(memory: NodeMemory, num_blocks: int) -> tuple[int, int, int, NodeId]:
    return (-min(memory.num_room, num_blocks), -memory.num_kept, memory.queue_tokens, memory.node_id)
