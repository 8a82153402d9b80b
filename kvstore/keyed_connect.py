"""Connects to a server of the same job, shows it the token and says what is wished of it.

Decides what a failure is called. It does not know what wish and answer mean.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from kvstore.errors import TransferError
from kvstore.job_token import JobToken
from kvstore.keyed_handshake import Dialect, HandshakeError, greet
from kvstore.tcp_address import TcpAddress
from kvstore.tcp_channel import ChannelError, ChannelLateError, TcpChannel
from kvstore.transport import RegionHandle


def server_address(region: RegionHandle, scheme: str) -> TcpAddress:
    """Where its server listens; `scheme` stands before that in addresses of its transport.

    Raises TransferError if the region is another transport's.
    """
    try:
        if not region.address.startswith(scheme):
            raise ValueError(f"{region.address!r} does not begin with {scheme!r}, as this transport's do")
        return TcpAddress.parse(region.address.removeprefix(scheme))
    except ValueError as error:
        raise TransferError(f"{region.node_id} cannot be reached: {error}") from error


def connect(
    region: RegionHandle, address: TcpAddress, end_s: float, prepare: Callable[[socket.socket], None]
) -> TcpChannel:
    """A connection to the region's server; `prepare` sees the socket before a byte is sent.

    Raises TransferError, or ChannelLateError when `end_s` of time.monotonic() is over.
    """
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise ChannelLateError("the time is over")
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        prepare(sock)
        sock.settimeout(left_s)
        sock.connect((address.ip, address.port))
        return TcpChannel(sock)
    except TimeoutError as error:
        sock.close()
        raise ChannelLateError("the time is over") from error
    except OSError as error:
        sock.close()
        raise TransferError(f"{region.node_id} is gone: cannot connect to {address}: {error}") from error
    except BaseException:
        sock.close()
        raise


def ask(
    channel: TcpChannel, region: RegionHandle, token: JobToken, dialect: Dialect, wish: bytes, end_s: float
) -> bytes:
    """The answer of the region's server. Raises as `connect` does; the channel is then of no use any more."""
    try:
        return greet(channel, token, dialect, wish, end_s)
    except ChannelLateError:
        raise
    except (ChannelError, HandshakeError) as error:
        raise TransferError(
            f"{region.node_id} at {region.address} did not let this process in: {error}; "
            "have both the token of the same job?"
        ) from error


def other_incarnation(region: RegionHandle) -> TransferError:
    """What to raise when the server there serves no such region."""
    return TransferError(
        f"region {region.incarnation} of {region.node_id} is gone: at {region.address} is another incarnation"
    )
