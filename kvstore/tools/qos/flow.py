"""Traffic of one class that never pauses: threads that write into a region one list after the other."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import numpy as np

from kvstore.errors import TransferError
from kvstore.traffic import TrafficClass
from kvstore.transport import RegionHandle, TransferList, Transport

PIECE_BYTES = 8 << 10
"""Small, as a piece's last packet asks for an acknowledgement: with 1 % of a link of some Mbit/s a piece must
arrive well within the time after which its packets are sent again."""
PIECES = 32
LIST_BYTES = PIECES * PIECE_BYTES
DEADLINE_S = 60.0
POLL_S = 0.02


class Flow:
    """Use as a context manager: it has begun to move, and writes until the end.

    Each thread has a place of LIST_BYTES in the region. With two there is always one whose writes wait for
    the link, so the flow has work all the time. Raises TransferError if nothing arrives.
    """

    def __init__(
        self,
        transport: Transport,
        region: RegionHandle,
        traffic_class: TrafficClass,
        *,
        first_place: int,
        num_threads: int,
    ) -> None:
        self._transport = transport
        self._region = region
        self._traffic_class = traffic_class
        self._ending = threading.Event()
        places = range(first_place, first_place + num_threads)
        self._threads = [threading.Thread(target=self._write, args=[place], daemon=True) for place in places]
        self.num_written = 0
        """Lists that arrived; a figure for people, as threads may count at once."""
        self.failures: list[str] = []

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        ends = time.monotonic() + DEADLINE_S
        while not self.num_written:
            if self.failures or time.monotonic() > ends:
                self._ending.set()
                raise TransferError(
                    f"{self._traffic_class.value} does not move: {self.failures or 'too slow'}"
                )
            time.sleep(POLL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_S)
            if thread.is_alive():
                self.failures.append(f"a write of class {self._traffic_class.value} does not end")

    def _write(self, place: int) -> None:
        memory = np.full(LIST_BYTES, place + 1, np.uint8)
        starts = np.arange(PIECES, dtype=np.int64) * PIECE_BYTES
        # Backwards at the other end, as neighbours at both ends would be sent as one.
        moves = TransferList.equal(memory, starts, starts[::-1] + place * LIST_BYTES, PIECE_BYTES)
        while not self._ending.is_set():
            try:
                self._transport.write(self._region, [moves], self._traffic_class, DEADLINE_S)
            except TransferError as error:
                self.failures.append(str(error))
            else:
                self.num_written += 1
