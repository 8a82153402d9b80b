"""Which prefill and which decode engine serve a request.

Pure policy over load figures. Token counts stand for GPU, disk and network load (DualPath, arXiv
2602.21548, section 6.1): a prefill engine whose unfinished tokens exceed its limit gets no more, and the
least loaded of the others is taken; a decode engine must have room for the request's whole context.
Ties go to fewer requests, then to the smaller id, so a decision is a function of its inputs. Engines that
failed the request before come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from engines.types import EngineId, NodeId


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine has been given and has not finished."""

    engine_id: EngineId
    node_id: NodeId
    num_requests: int
    load_tokens: int


def choose_prefill(
    loads: Iterable[EngineLoad], load_limit_tokens: int, failed: Set[EngineId] = frozenset()
) -> EngineLoad | None:
    """The least loaded engine under the limit, or None if all are over it."""
    return _least([load for load in loads if load.load_tokens <= load_limit_tokens], failed)


def choose_decode(loads: Iterable[EngineLoad], failed: Set[EngineId] = frozenset()) -> EngineLoad | None:
    """The decode engine with the fewest tokens."""
    return _least(list(loads), failed)


def _least(loads: list[EngineLoad], failed: Set[EngineId]) -> EngineLoad | None:
    def rank(load: EngineLoad) -> tuple[bool, int, int, EngineId]:
        return (load.engine_id in failed, load.load_tokens, load.num_requests, load.engine_id)

    return min(loads, key=rank, default=None)
