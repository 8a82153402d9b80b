"""Engines of one role that fetch together, and what each of them has been given and has not finished.

Bookkeeping in arrays, one row per engine, so that a choice among hundreds is a few vector operations. It does
not choose. Rows are in order of engine id, so the first of equals is the smallest id. In DualPath (arXiv
2602.21548, section 6.1) one engine of a group fetches for all; here the scheduler has each group fetch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Set

import numpy as np
import numpy.typing as npt

from engines.types import EngineId, NodeId

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
_REQUEST_BITS, _TOKEN_BITS = 20, 40
"""A rank holds its first figure above this many bits of its second."""
_NEVER = np.iinfo(np.int64).max


class EngineGroup:
    """All prefill or all decode engines; all engines of a node are in the same group."""

    def __init__(self, group_id: str) -> None:
        self.group_id = group_id
        self.engine_ids: list[EngineId] = []
        self.node_ids: list[NodeId] = []
        self.node_rows: npt.NDArray[np.intp] = np.zeros(0, np.intp)
        """Each engine's row in the read queues."""
        self.tokens: Counts = np.zeros(0, np.int64)
        """tok_e: tokens of the unfinished requests."""
        self.requests: Counts = np.zeros(0, np.int64)
        """seq_e: unfinished requests."""
        self.free_kv_tokens: Counts = np.zeros(0, np.int64)
        """Decode: tokens of HBM that no placed turn needs. Prefill: 0."""
        self.total_tokens = 0
        """Of all its engines."""
        self._by_tokens: Counts = np.zeros(0, np.int64)
        self._by_requests: Counts = np.zeros(0, np.int64)
        self._rows: dict[EngineId, int] = {}

    def __len__(self) -> int:
        return len(self.engine_ids)

    def row_of(self, engine_id: EngineId) -> int:
        return self._rows[engine_id]

    def add(self, engine_id: EngineId, node_id: NodeId, node_row: int, kv_tokens: int = 0) -> None:
        """An engine with nothing to do. Raises ValueError if it is there already."""
        if engine_id in self._rows:
            raise ValueError(f"engine {engine_id} is in group {self.group_id} already")
        row = bisect_left(self.engine_ids, engine_id)
        self.engine_ids.insert(row, engine_id)
        self.node_ids.insert(row, node_id)
        self.node_rows = np.insert(self.node_rows, row, node_row)
        self.tokens = np.insert(self.tokens, row, 0)
        self.requests = np.insert(self.requests, row, 0)
        self.free_kv_tokens = np.insert(self.free_kv_tokens, row, kv_tokens)
        self._by_tokens = np.insert(self._by_tokens, row, 0)
        self._by_requests = np.insert(self._by_requests, row, 0)
        self._number_rows()

    def remove(self, engine_id: EngineId) -> None:
        """An engine that is gone, and with it all it had been given."""
        row = self._rows[engine_id]
        self.total_tokens -= int(self.tokens[row])
        del self.engine_ids[row], self.node_ids[row]
        self.node_rows = np.delete(self.node_rows, row)
        self.tokens = np.delete(self.tokens, row)
        self.requests = np.delete(self.requests, row)
        self.free_kv_tokens = np.delete(self.free_kv_tokens, row)
        self._by_tokens = np.delete(self._by_tokens, row)
        self._by_requests = np.delete(self._by_requests, row)
        self._number_rows()

    def give(self, row: int, load_tokens: int, kv_tokens: int = 0) -> None:
        """The engine has one more request, which needs so much of its HBM."""
        self.total_tokens += load_tokens
        self.tokens[row] += load_tokens
        self.requests[row] += 1
        self.free_kv_tokens[row] -= kv_tokens
        self._rank(row)

    def take_back(self, row: int, load_tokens: int, kv_tokens: int = 0) -> None:
        """The engine is done with a request that it was given, or has lost it."""
        self.total_tokens -= load_tokens
        self.tokens[row] -= load_tokens
        self.requests[row] -= 1
        self.free_kv_tokens[row] += kv_tokens
        self._rank(row)

    def fewest_tokens(self, allowed: Mask) -> int | None:
        """The row with the fewest tokens, then requests, of those `allowed`; None if none is."""
        return _least(self._by_tokens, allowed)

    def fewest_requests(self, allowed: Mask) -> int | None:
        """The row with the fewest requests, then tokens, of those `allowed`; None if none is."""
        return _least(self._by_requests, allowed)

    def but_failed(self, allowed: Mask, failed: Set[EngineId]) -> Mask:
        """`allowed` without the engines of `failed`; with them if no other is allowed."""
        rows = [self._rows[engine_id] for engine_id in failed if engine_id in self._rows]
        others = allowed.copy()
        others[rows] = False
        return others if others.any() else allowed

    def _rank(self, row: int) -> None:
        tokens, requests = int(self.tokens[row]), int(self.requests[row])
        self._by_tokens[row] = (tokens << _REQUEST_BITS) + requests
        self._by_requests[row] = (requests << _TOKEN_BITS) + tokens

    def _number_rows(self) -> None:
        self._rows = {engine_id: row for row, engine_id in enumerate(self.engine_ids)}


def _least(ranks: Counts, allowed: Mask) -> int | None:
    row = int(np.where(allowed, ranks, _NEVER).argmin())
    return row if allowed[row] else None
