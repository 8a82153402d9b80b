"""A client's NIXL connections: an agent that has met the server's, and memory of its own that all bytes pass.

Decides what becomes of a call that does not end in time, which NIXL can neither stop nor fence:

    here    bytes of a READ pass BOUNCE_BYTES of memory that nobody else uses, and are copied from there once
            they have arrived, so what comes later reaches nobody
    there   a WRITE may put bytes down at any time, so its place is not to be used again

The transfer is then left to UnfinishedTransfers with all that it needs. Beside an agent stays the TCP
connection by which it met the other: when a process dies its kernel ends that at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from kvstore.errors import TransferError
from kvstore.job_token import JobToken
from kvstore.keyed_connect import ask, connect, other_incarnation, server_address
from kvstore.nixl_handshake import NIXL_DIALECT, Answer, Status
from kvstore.nixl_library import Direction, NixlAgent, NixlError, NixlTransfer
from kvstore.nixl_unfinished import Unfinished, UnfinishedTransfers
from kvstore.pieces import copy_all, merge_neighbours
from kvstore.tcp_channel import ChannelError, ChannelLateError, TcpChannel
from kvstore.tcp_wire import region_id
from kvstore.traffic import TrafficClass
from kvstore.transfer_portions import portions
from kvstore.transport import Bytes, Offsets, RegionHandle, TransferList

SCHEME = "nixl+"
"""Before the TCP address at which a region's agent is told of."""
BOUNCE_BYTES = 4 << 20
"""Of one connection; what moves at once. On memory of this size copying is as fast as it gets."""
_FIRST_PAUSE_S = 1e-5
_LONGEST_PAUSE_S = 1e-3


class NixlConnection:
    """A Connection of kvstore.connection_pool."""

    def __init__(
        self, control: TcpChannel, agent: NixlAgent, region_address: int, unfinished: UnfinishedTransfers
    ) -> None:
        """Raises NixlError."""
        self.is_quiet = control.is_quiet
        self.shut = control.shut
        self._control = control
        self._agent = agent
        self._region_address = region_address
        self._bounce = np.empty(BOUNCE_BYTES, np.uint8)
        self._bounce_address = agent.register(self._bounce)
        self._unfinished = unfinished
        self._transfer: NixlTransfer | None = None
        self._was_left = False

    def move(self, direction: Direction, lists: Sequence[TransferList], end_s: float) -> None:
        """Return when all bytes are in place. Raises NixlError, ChannelError or ChannelLateError."""
        for portion in portions(lists, BOUNCE_BYTES):
            sizes = np.concatenate([moves.sizes for moves in portion])
            remote = np.concatenate([moves.remote_offsets for moves in portion])
            if direction is Direction.WRITE:
                self._bounce_each(portion, _gather)
            self._carry(direction, *merge_neighbours(remote, sizes), end_s)
            if direction is Direction.READ:
                self._bounce_each(portion, _scatter)

    def close(self) -> None:
        if not self._was_left:
            self._control.close()
            self._agent.close()

    def abort(self) -> None:
        """Leave what is under way to itself."""
        if self._transfer is not None:
            self._was_left = True
            self._unfinished.add(Unfinished(self._control, self._agent, self._transfer))

    def _carry(self, direction: Direction, remote: Offsets, sizes: Offsets, end_s: float) -> None:
        """Between the front of the bounce memory and the region."""
        local = np.cumsum(sizes) - sizes + self._bounce_address
        if time.monotonic() >= end_s:
            raise ChannelLateError("the time is over")
        self._transfer = self._agent.start(direction, local, remote + self._region_address, sizes)
        pause_s = _FIRST_PAUSE_S
        while not self._transfer.is_done():
            if self._control.is_hung_up():
                raise ChannelError("its process ended")
            if time.monotonic() >= end_s:
                raise ChannelLateError("the time is over")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._transfer.release()
        self._transfer = None

    def _bounce_each(
        self, portion: Sequence[TransferList], copy: Callable[[Bytes, Offsets, TransferList], None]
    ) -> None:
        first = 0
        for moves in portion:
            copy(self._bounce, np.cumsum(moves.sizes) - moves.sizes + first, moves)
            first += moves.nbytes


def _gather(bounce: Bytes, places: Offsets, moves: TransferList) -> None:
    copy_all(bounce, places, moves.memory, moves.local_offsets, moves.sizes)


def _scatter(bounce: Bytes, places: Offsets, moves: TransferList) -> None:
    copy_all(moves.memory, moves.local_offsets, bounce, places, moves.sizes)


class NixlConnector:
    """Opens connections; the traffic class makes no difference to NIXL."""

    def __init__(self, token: JobToken, device: str) -> None:
        self._token = token
        self._device = device
        self._unfinished = UnfinishedTransfers()

    def open(self, region: RegionHandle, traffic_class: TrafficClass, end_s: float) -> NixlConnection:
        """Raises TransferError, or ChannelLateError when `end_s` of time.monotonic() is over."""
        control = connect(region, server_address(region, SCHEME), end_s, lambda sock: None)
        agent: NixlAgent | None = None
        try:
            wish = region_id(region.incarnation)
            answer = Answer.unpack(ask(control, region, self._token, NIXL_DIALECT, wish, end_s))
            if answer.status is not Status.OK:
                raise other_incarnation(region)
            metadata = bytearray(answer.metadata_bytes)
            control.receive([memoryview(metadata)], end_s)
            agent = NixlAgent(self._device, serves=False)
            agent.meet(bytes(metadata))
            return NixlConnection(control, agent, answer.address, self._unfinished)
        except BaseException as error:
            control.close()
            if agent is not None:
                agent.close()
            if isinstance(error, NixlError):
                raise TransferError(f"no NIXL agent for {region.node_id}: {error}") from error
            raise

    @property
    def num_unfinished(self) -> int:
        return len(self._unfinished)

    def close(self) -> None:
        """Once all connections are closed or were left."""
        self._unfinished.close()
