"""A storage NIC: it reads for turns in order, one after the other, and writes beside that.

Reads that have not begun may be given up (engines.scheduling.rebalance). Writes need no events: they are
queued, and it is known when they will have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engines.sim.events import Events
from engines.sim.nodes import SimNode
from engines.sim.snic_windows import SnicWindows
from engines.sim.transfers import Transfers
from engines.sim.turn import SimTurn


@dataclass(slots=True, eq=False)
class Read:
    """Blocks of one turn; or of a context that is read ahead, while its agent waits."""

    turn: SimTurn | None
    blocks: int


class SimSnic:
    """One node's."""

    def __init__(
        self,
        node: SimNode,
        events: Events,
        transfers: Transfers,
        windows: SnicWindows,
        block_bytes: int,
        on_read: Callable[[SimSnic, Read], None],
    ) -> None:
        self.node = node
        self._events = events
        self._transfers = transfers
        self._windows = windows
        self._block_bytes = block_bytes
        self._on_read = on_read
        self._links = (node.snic_in, node.store, node.dram)
        self.queued: deque[Read] = deque()
        """Reads that have not begun."""
        self._current: Read | None = None
        self._began_s = 0.0
        self._num_read = 0
        self._num_given_up = 0
        self._written_s = 0.0
        self.ahead_bytes_read = 0

    def read(self, turn: SimTurn | None, blocks: int) -> None:
        """After all that were asked for before."""
        self.queued.append(Read(turn, blocks))
        if self._current is None:
            self._next()

    def read_ahead(self, blocks: int) -> None:
        """These are no turn's; they count in no queue. Only while the NIC is idle."""
        self.ahead_bytes_read += blocks * self._block_bytes
        self.read(None, blocks)

    @property
    def is_idle(self) -> bool:
        return self._current is None

    def skip(self, blocks: int) -> None:
        """These need not be read: they count as finished."""
        self._num_given_up += blocks

    def give_up(self, turn: SimTurn, blocks: int) -> bool:
        """The turn's last `blocks`, which have not begun, are read elsewhere; whether none are left."""
        read = next(read for read in reversed(self.queued) if read.turn is turn)
        read.blocks -= blocks
        self._num_given_up += blocks
        if not read.blocks:
            self.queued.remove(read)
        return not read.blocks

    @property
    def num_finished(self) -> int:
        """Blocks read or given up so far, those of the read in progress as far as it should have come."""
        done = self._num_read + self._num_given_up
        if self._current is None or self._current.turn is None:
            return done
        nbytes = (self._events.now_s - self._began_s) * self.node.snic_in.bytes_per_s
        return done + int(min(nbytes // self._block_bytes, self._current.blocks - 1))

    @property
    def ahead_bytes(self) -> float:
        """Of the read in progress: what is read before any queued block."""
        if self._current is None:
            return 0.0
        nbytes = (self._events.now_s - self._began_s) * self.node.snic_in.bytes_per_s
        return max(self._current.blocks * self._block_bytes - nbytes, 0.0)

    def write(self, nbytes: float) -> float:
        """Write after all that was to be written before; when that will have ended."""
        link, now_s = self.node.snic_out, self._events.now_s
        began_s = max(self._written_s, now_s)
        self._written_s = began_s + nbytes / min(link.bytes_per_s, self.node.store.bytes_per_s)
        link.total_bytes += nbytes
        self._windows.wrote(self.node.index, began_s, self._written_s, nbytes)
        return self._written_s

    def _next(self) -> None:
        if not self.queued:
            self._current = None
            return
        self._current = self.queued.popleft()
        self._began_s = self._events.now_s
        nbytes = self._current.blocks * self._block_bytes
        self._transfers.carry(self._links, nbytes, self._ended, self._current)

    def _ended(self, read: Read) -> None:
        self._num_read += read.blocks if read.turn is not None else 0
        nbytes = read.blocks * self._block_bytes
        self._windows.read(self.node.index, self._began_s, self._events.now_s, nbytes)
        self._next()
        self._on_read(self, read)
