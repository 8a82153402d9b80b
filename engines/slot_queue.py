"""Turns that have both engines and wait for slots: in order on every node, so nobody starves.

Pure bookkeeping. A turn waits in the line of each node it needs slots of, and is asked for only when it is
first in all of them: a later turn that needs one of these nodes never passes it, one on other nodes goes on.
The turn that came first of all is first in all its lines, so the queue never stands still.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from engines.types import NodeId, RequestId


class SlotQueue:
    """One line per node. Every step is O(1)."""

    def __init__(self) -> None:
        self._nodes: dict[RequestId, tuple[NodeId, ...]] = {}
        self._lines: dict[NodeId, OrderedDict[RequestId, None]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._nodes

    def push(self, request_id: RequestId, nodes: Iterable[NodeId]) -> None:
        """The last in the lines of `nodes`."""
        self._nodes[request_id] = tuple(dict.fromkeys(nodes))
        for node_id in self._nodes[request_id]:
            self._lines.setdefault(node_id, OrderedDict())[request_id] = None

    def leave(self, request_id: RequestId) -> tuple[NodeId, ...]:
        """The turn waits no more; the nodes whose lines it stood in."""
        nodes = self._nodes.pop(request_id, ())
        for node_id in nodes:
            del self._lines[node_id][request_id]
        return nodes

    def waits_for(self, node_id: NodeId) -> bool:
        """Whether anybody waits for slots of the node."""
        return bool(self._lines.get(node_id))

    def nodes(self) -> tuple[NodeId, ...]:
        """All nodes that somebody waits for."""
        return tuple(node_id for node_id, line in self._lines.items() if line)

    def first(self, node_id: NodeId) -> RequestId | None:
        """The turn that is first in this node's line and in all its others; None if there is none."""
        line = self._lines.get(node_id)
        if not line:
            return None
        request_id = next(iter(line))
        lines = (self._lines[other] for other in self._nodes[request_id])
        return request_id if all(next(iter(line)) == request_id for line in lines) else None
