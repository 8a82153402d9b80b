"""A node's storage read queue: what its storage NIC reads next, and what it has not begun.

Loads of all turns are served first come, first served (DualPath, arXiv 2602.21548, leaves the order inside a
node open), cut into chunks of neighbouring blocks, a few of which are in flight at a time: so many that the
medium is kept busy, so few that most of what is queued can still be given up. Each block is queued, begun,
done or given up, and has exactly one of the last two as its end.

Pure bookkeeping: no I/O, no clock, no threads. It does not know what a block holds or why a load is given up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from engines.block_spans import blocks_of, spans_of
from engines.read_messages import BlockLoad, LoadId, MoveOrder, UnreadReads
from engines.types import ReadSide, RequestId


@dataclass(frozen=True, slots=True)
class Chunk:
    """Blocks of one load that are read together."""

    load_id: LoadId
    loads: tuple[BlockLoad, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Blocks of one load that will not be read here."""

    load_id: LoadId
    loads: tuple[BlockLoad, ...]


@dataclass(slots=True)
class _Load:
    request_id: RequestId
    side: ReadSide
    queued: deque[BlockLoad] = field(default_factory=deque)
    queued_bytes: int = 0

    def take_out(self, is_unwanted: Callable[[BlockLoad], bool]) -> tuple[BlockLoad, ...]:
        """Those queued blocks that are unwanted; the others stay, in their order."""
        out = tuple(load for load in self.queued if is_unwanted(load))
        if out:
            self.queued = deque(load for load in self.queued if not is_unwanted(load))
            self.queued_bytes -= sum(map(_nbytes, out))
        return out


class ReadQueue:
    """One per node, used from one thread. Times are the caller's, in seconds; they never go back."""

    def __init__(self, chunk_bytes: int, depth: int) -> None:
        """`depth` chunks of about `chunk_bytes` are in flight at most."""
        self._chunk_bytes = chunk_bytes
        self._depth = depth
        self._loads: dict[LoadId, _Load] = {}
        """Loads with queued blocks, in the order they came."""
        self._in_flight: list[Chunk] = []
        self._busy_s = 0.0
        self._busy_since_s: float | None = None
        self.num_finished = 0
        """Blocks that are done or given up, ever."""

    @property
    def is_idle(self) -> bool:
        """Nothing is queued or in flight."""
        return not self._loads and not self._in_flight

    @property
    def unfinished_bytes(self) -> int:
        """Queued or in flight."""
        queued = sum(load.queued_bytes for load in self._loads.values())
        return queued + self._in_flight_bytes

    def busy_s(self, now_s: float) -> float:
        """Seconds so far in which something was queued or in flight."""
        return self._busy_s + (0.0 if self._busy_since_s is None else now_s - self._busy_since_s)

    def add(
        self,
        load_id: LoadId,
        request_id: RequestId,
        side: ReadSide,
        loads: Iterable[BlockLoad],
        now_s: float,
    ) -> None:
        """These blocks are read after all that were added before."""
        queued = deque(loads)
        if not queued:
            return
        assert load_id not in self._loads, load_id
        self._loads[load_id] = _Load(request_id, side, queued, sum(map(_nbytes, queued)))
        self._count_time(now_s)

    def take(self) -> Chunk | None:
        """The next chunk, which has begun from now on; None while enough are in flight, or nothing waits."""
        if not self._loads or len(self._in_flight) >= self._depth:
            return None
        load_id, load = next(iter(self._loads.items()))
        taken = [load.queued.popleft()]
        nbytes = _nbytes(taken[0])
        while load.queued and nbytes + _nbytes(load.queued[0]) <= self._chunk_bytes:
            taken.append(load.queued.popleft())
            nbytes += _nbytes(taken[-1])
        load.queued_bytes -= nbytes
        if not load.queued:
            del self._loads[load_id]
        chunk = Chunk(load_id, tuple(taken), nbytes)
        self._in_flight.append(chunk)
        return chunk

    def end(self, chunk: Chunk, now_s: float) -> None:
        """The chunk is read, or failed to be."""
        self._in_flight.remove(chunk)
        self.num_finished += len(chunk.loads)
        self._count_time(now_s)

    def give_up(self, order: MoveOrder, now_s: float) -> tuple[GivenUp, ...]:
        """What of the order's blocks had not begun, load by load: the other side reads it."""
        blocks = set(blocks_of(order.spans))
        return self._take_out(
            [i for i, load in self._of(order.request_id) if load.side is not order.to_side],
            lambda load: load.block in blocks,
            now_s,
        )

    def drop(self, request_id: RequestId, now_s: float) -> tuple[GivenUp, ...]:
        """What of the turn's had not begun: nobody wants it any more."""
        return self._take_out([i for i, _ in self._of(request_id)], lambda load: True, now_s)

    def expire(self, load_id: LoadId, now_s: float) -> tuple[BlockLoad, ...]:
        """What of one load had not begun: its time is over."""
        given_up = self._take_out([load_id], lambda load: True, now_s) if load_id in self._loads else ()
        return given_up[0].loads if given_up else ()

    def unread(self) -> tuple[UnreadReads, ...]:
        """What had not begun, by turn and side; what was added later to a turn's side comes after."""
        spans: dict[tuple[RequestId, ReadSide], list[int]] = {}
        ahead: dict[tuple[RequestId, ReadSide], int] = {}
        ahead_bytes = self._in_flight_bytes
        for load in self._loads.values():
            ahead.setdefault((load.request_id, load.side), ahead_bytes)
            spans.setdefault((load.request_id, load.side), []).extend(b.block for b in load.queued)
            ahead_bytes += load.queued_bytes
        return tuple(
            UnreadReads(request_id, side, spans_of(blocks), ahead[request_id, side])
            for (request_id, side), blocks in spans.items()
        )

    def check(self) -> None:
        """Raise AssertionError unless sums agree and no block of a load is there twice."""
        assert len(self._in_flight) <= self._depth
        assert (self._busy_since_s is None) == self.is_idle
        blocks: Counter[tuple[LoadId, int]] = Counter()
        for load_id, load in self._loads.items():
            assert load.queued, load_id
            assert load.queued_bytes == sum(map(_nbytes, load.queued)), load_id
            blocks.update((load_id, one.block) for one in load.queued)
        for chunk in self._in_flight:
            blocks.update((chunk.load_id, one.block) for one in chunk.loads)
        assert set(blocks.values()) <= {1}, blocks

    @property
    def _in_flight_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._in_flight)

    def _of(self, request_id: RequestId) -> list[tuple[LoadId, _Load]]:
        return [(i, load) for i, load in self._loads.items() if load.request_id == request_id]

    def _take_out(
        self, load_ids: Collection[LoadId], is_unwanted: Callable[[BlockLoad], bool], now_s: float
    ) -> tuple[GivenUp, ...]:
        given_up = []
        for load_id in load_ids:
            out = self._loads[load_id].take_out(is_unwanted)
            if out:
                given_up.append(GivenUp(load_id, out))
                self.num_finished += len(out)
            if not self._loads[load_id].queued:
                del self._loads[load_id]
        self._count_time(now_s)
        return tuple(given_up)

    def _count_time(self, now_s: float) -> None:
        """Called after each change between idle and not."""
        if self.is_idle and self._busy_since_s is not None:
            self._busy_s += now_s - self._busy_since_s
            self._busy_since_s = None
        elif not self.is_idle and self._busy_since_s is None:
            self._busy_since_s = now_s


def chunks_of(loads: Iterable[BlockLoad], chunk_bytes: int) -> Iterator[tuple[BlockLoad, ...]]:
    """The loads in order, in chunks of at most `chunk_bytes` or of one block."""
    chunk: list[BlockLoad] = []
    for load in loads:
        if chunk and sum(map(_nbytes, chunk)) + _nbytes(load) > chunk_bytes:
            yield tuple(chunk)
            chunk = []
        chunk.append(load)
    if chunk:
        yield tuple(chunk)


def carried_out(order: MoveOrder, loads: Sequence[BlockLoad]) -> MoveOrder:
    """The part of `order` that names these blocks, with their slots."""
    slots = dict(zip(blocks_of(order.spans), order.slots, strict=False))
    blocks = [load.block for load in loads]
    return MoveOrder(
        order.request_id,
        order.to_side,
        spans_of(blocks),
        tuple(slots[block] for block in blocks) if slots else (),
    )


def _nbytes(load: BlockLoad) -> int:
    assert load.location is not None, load
    return load.location.nbytes
