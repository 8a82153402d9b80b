"""How many tokens each node still has to read from storage, current between the nodes' reports.

Two totals per node that only grow: what was ever planned there, which the scheduler knows, and what the node
has ever finished (read, failed or given up), which the node reports. Their difference is the queue. So a
report that was on its way while turns were placed counts none of them twice, and one that comes late changes
nothing. A queue is never more than what its node has to read for turns whose reads are not over: so it ends
even if the node was never told of some reads, or does not report. What was never told is forgotten when a
report finds nothing open. Until a turn has both engines its reads are promised to its prefill node, so that
turns placed in one fetch see one another. DualPath (arXiv 2602.21548, section 6.1) leaves open who counts
between reports.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from engines.types import NodeId, RequestId


class ReadQueues:
    """Read queue lengths in tokens."""

    def __init__(self) -> None:
        self._rows: dict[NodeId, int] = {}
        self._tokens = np.zeros(0, np.int64)
        self._planned: list[int] = []
        self._finished: list[int] = []
        self._open: list[int] = []
        self._late: list[int] = []
        self._promised: list[int] = []
        self._promises: dict[RequestId, tuple[int, int]] = {}

    def add_node(self, node_id: NodeId) -> int:
        """The node's row, its queue empty; a node that comes back starts anew."""
        row = self._rows.get(node_id)
        if row is None:
            row = self._rows[node_id] = len(self._planned)
            self._planned.append(0)
            for column in (self._finished, self._open, self._late, self._promised):
                column.append(0)
            self._tokens = np.append(self._tokens, 0)
        for request_id in [r for r, (promised, _) in self._promises.items() if promised == row]:
            del self._promises[request_id]
        for column in (self._planned, self._finished, self._open, self._late, self._promised):
            column[row] = 0
        self._count(row)
        return row

    def row_of(self, node_id: NodeId) -> int:
        return self._rows[node_id]

    def at(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """Queue lengths of several nodes by row, promises included."""
        return self._tokens[rows]

    def tokens(self, node_id: NodeId) -> int:
        """Tokens planned or promised on the node and not reported as finished."""
        return int(self._tokens[self._rows[node_id]])

    def planned_tokens(self, node_id: NodeId) -> int:
        """The same without promises: a turn that is only promised is read after one that is planned now."""
        row = self._rows[node_id]
        return int(self._tokens[row]) - self._promised[row]

    def promise(self, request_id: RequestId, node_id: NodeId, tokens: int) -> None:
        """A turn has its prefill engine on this node; where its blocks are read is not known yet."""
        row = self._rows[node_id]
        self._promises[request_id] = (row, tokens)
        self._promised[row] += tokens
        self._count(row)

    def keep_no_promise(self, request_id: RequestId) -> None:
        """Take the turn's promise back, if there is one: it is planned now, or given up."""
        row, tokens = self._promises.pop(request_id, (None, 0))
        if row is not None:
            self._promised[row] -= tokens
            self._count(row)

    def plan(self, tokens_on: Mapping[NodeId, int]) -> None:
        """Reads that the nodes will be told of; negative for those that they were not told of in the end."""
        for node_id, tokens in tokens_on.items():
            row = self._rows[node_id]
            self._planned[row] += tokens
            self._open[row] += tokens
            self._count(row)

    def give_up(self, node_id: NodeId, tokens: int) -> None:
        """The node was told to give up so much of what is open; it will report that as finished."""
        row = self._rows[node_id]
        self._open[row] -= tokens
        self._count(row)

    def close(self, tokens_on: Mapping[NodeId, int]) -> None:
        """A turn's reads, so much on each node, are over: read, or not wanted any more."""
        for node_id, tokens in tokens_on.items():
            self.give_up(node_id, tokens)

    def set_late(self, node_id: NodeId, tokens: int) -> None:
        """The node still reads so much that nobody waits for any more, and has reported it as failed.

        So a turn that lost it is not sent to the same side at once, to lose half of what is left.
        """
        row = self._rows[node_id]
        self._late[row] = tokens
        self._count(row)

    def report(self, node_id: NodeId, finished_tokens: int) -> None:
        """The node has finished so many tokens since it was added; a smaller total than before is late."""
        row = self._rows[node_id]
        self._finished[row] = max(self._finished[row], finished_tokens)
        if not self._open[row] or self._finished[row] > self._planned[row]:
            self._planned[row] = self._finished[row]
        self._count(row)

    def check(self) -> None:
        """Raise AssertionError unless every queue is its parts."""
        for node_id, row in self._rows.items():
            promised = sum(tokens for other, tokens in self._promises.values() if other == row)
            assert self._promised[row] == promised, node_id
            assert self._open[row] >= 0, node_id
            unread = min(self._planned[row] - self._finished[row], self._open[row])
            assert int(self._tokens[row]) == max(unread, 0) + self._late[row] + promised, node_id

    def _count(self, row: int) -> None:
        unread = min(self._planned[row] - self._finished[row], self._open[row])
        self._tokens[row] = max(unread, 0) + self._late[row] + self._promised[row]
