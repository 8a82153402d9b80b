"""Transport between processes over TCP, to peers that serve their memory with a TcpServer.

Decides how lists become requests, and what a failure is called. It does not know how connections are had
(kvstore.connection_pool) and what a request looks like (kvstore.tcp_wire). All lists of a call are one
request, or several one after the other if they have more than MAX_RANGES pieces. No call takes longer than
MAX_REQUEST_MS.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from kvstore.connection_pool import ConnectionPool
from kvstore.errors import LateWrite, TransferError
from kvstore.job_token import JobToken
from kvstore.tcp_channel import ChannelError, ChannelLateError
from kvstore.tcp_connections import TcpConnection, TcpConnector
from kvstore.tcp_pieces import receive_pieces, send_pieces
from kvstore.tcp_wire import (
    ANSWER_BYTES,
    MAX_RANGES,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_MS,
    Header,
    Kind,
    Status,
    WireError,
    pack_ranges,
    region_id,
    unpack_answer,
)
from kvstore.traffic import CLASS_TABLE, ClassSettings, TrafficClass
from kvstore.transport import RegionHandle, TransferList, require_inside


class TcpTransport:
    """A Transport for regions that a TcpServer registered. Each class has connections of its own."""

    def __init__(self, token: JobToken, classes: Mapping[TrafficClass, ClassSettings] = CLASS_TABLE) -> None:
        self._connections = ConnectionPool("TCP", TcpConnector(token, classes).open)

    def read(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(Kind.READ, region, lists, traffic_class, deadline_s)

    def write(
        self,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        self._move(Kind.WRITE, region, lists, traffic_class, deadline_s)

    def close(self) -> None:
        self._connections.close()

    def _move(
        self,
        kind: Kind,
        region: RegionHandle,
        lists: Sequence[TransferList],
        traffic_class: TrafficClass,
        deadline_s: float,
    ) -> None:
        end_s = time.monotonic() + min(deadline_s, MAX_REQUEST_MS / 1000)
        require_inside(region, lists)
        requests = _requests(lists)
        if not requests:
            return
        try:
            with self._connections.lend(region, traffic_class, end_s) as connection:
                for request in requests:
                    _ask(connection, kind, region, request, end_s)
        except ChannelError as error:
            reason = self._connections.reason(error, region, sum(map(len, lists)), deadline_s)
            if kind is Kind.WRITE and isinstance(error, ChannelLateError):
                # Bytes that the peer has taken already it may put down at any time.
                raise LateWrite(reason) from error
            raise TransferError(reason) from error
        except WireError as error:
            raise TransferError(f"{region.node_id} at {region.address} refused: {error}") from error


def _requests(lists: Sequence[TransferList]) -> list[list[TransferList]]:
    """The pieces that are not empty, as lists that one request can name together."""
    requests: list[list[TransferList]] = []
    room = 0
    for moves in lists:
        full = np.flatnonzero(moves.sizes)
        while len(full):
            if not room:
                requests.append([])
                room = MAX_RANGES
            part, full = full[:room], full[room:]
            requests[-1].append(
                TransferList(
                    moves.memory, moves.local_offsets[part], moves.remote_offsets[part], moves.sizes[part]
                )
            )
            room -= len(part)
    return requests


def _ask(
    connection: TcpConnection, kind: Kind, region: RegionHandle, lists: Sequence[TransferList], end_s: float
) -> None:
    """One request and its answer. Raises ChannelError or WireError; the connection must then be closed."""
    table, num_ranges = pack_ranges(
        np.concatenate([moves.remote_offsets for moves in lists]),
        np.concatenate([moves.sizes for moves in lists]),
    )
    header = Header(
        kind=kind,
        deadline_ms=max(int((end_s - time.monotonic()) * 1000), 1),
        num_ranges=num_ranges,
        request_id=next(connection.request_ids),
        region_id=region_id(region.incarnation),
        nbytes=sum(moves.nbytes for moves in lists),
    )
    if header.nbytes > MAX_REQUEST_BYTES:
        raise WireError(Status.MALFORMED, f"{header.nbytes} bytes in a list, at most {MAX_REQUEST_BYTES} go")
    answer = bytearray(ANSWER_BYTES)
    channel = connection.channel
    channel.send([memoryview(header.pack() + table)], end_s)
    if kind is Kind.WRITE:
        for moves in lists:
            send_pieces(channel, moves.memory, moves.local_offsets, moves.sizes, end_s)
    channel.receive([memoryview(answer)], end_s)
    status = unpack_answer(answer, header.request_id)
    if status is not Status.OK:
        raise WireError(status, status.name.lower().replace("_", " "))
    if kind is Kind.READ:
        for moves in lists:
            receive_pieces(channel, moves.memory, moves.local_offsets, moves.sizes, end_s)
