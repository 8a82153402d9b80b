"""Moves bytes between a connected TCP socket and memory, each move by a given time.

Decides nothing about what the bytes mean. Many pieces of memory go into, or come out of, one system call, and
none is copied on the way. The kernel keeps the time (SO_RCVTIMEO, SO_SNDTIMEO), so that a call may wait for
all its bytes at once (MSG_WAITALL) and still end in time.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

_MAX_PIECES = os.sysconf("SC_IOV_MAX")
"""Pieces of memory that one system call takes."""
_TIMEVAL = struct.Struct("@ll")
_DROP = struct.pack("@ii", 1, 0)
"""Linger for no time at all (struct linger)."""
_SHORTEST_WAIT_S = 1e-5
_LONGEST_WAIT_S = 1.0
"""A system call ends after this at the latest; it is made again until the time is over. As most calls have
more time than this, the kernel need not be told the time for each of them."""
_SILENCE_S = 10.0
"""A peer that neither takes nor gives a byte of a message for so long is taken to be stopped."""
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
)
"""Seconds, seconds, probes: the end of a machine that vanished without a word is noticed in a minute."""
_HUNG_UP = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class ChannelError(Exception):
    """The connection is of no use any more."""


class ChannelLateError(ChannelError):
    """The time was over before all bytes had moved, or the other end was silent for too long."""


class TcpChannel:
    """A connected socket. One thread sends and receives; any may call `close` or `shut`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._timeouts_s = dict.fromkeys((socket.SO_RCVTIMEO, socket.SO_SNDTIMEO), math.inf)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLRDHUP)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, pieces: Sequence[memoryview], end_s: float) -> None:
        """Hand all bytes of the (non-empty) pieces to the kernel by `end_s` of time.monotonic()."""
        self._move(pieces, end_s, socket.SO_SNDTIMEO, self.socket.sendmsg)

    def receive(self, pieces: Sequence[memoryview], end_s: float) -> None:
        """Fill all (non-empty) pieces by `end_s` of time.monotonic()."""
        self._move(pieces, end_s, socket.SO_RCVTIMEO, self._receive_some)

    def wait_for_bytes(self) -> None:
        """Return once something has arrived or the connection has ended, however long that takes."""
        self._poll.poll()

    def is_quiet(self) -> bool:
        """Neither bytes nor the connection's end have arrived."""
        return not self._poll.poll(0)

    def is_hung_up(self) -> bool:
        """The other end sends nothing more: it closed the connection, or died."""
        return any(events & _HUNG_UP for _, events in self._poll.poll(0))

    def shut(self) -> None:
        """End the connection, also under another thread that waits on it. Idempotent."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back; by the thread that uses it. What was sent still arrives. Idempotent."""
        self.socket.close()

    def abort(self) -> None:
        """As `close`, but what is still on its way is dropped, and the other end gets an error."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
        self.socket.close()

    def _receive_some(self, pieces: Sequence[memoryview]) -> int:
        received = self.socket.recvmsg_into(pieces, 0, socket.MSG_WAITALL)[0]
        if not received:
            raise ChannelError("the other end closed the connection")
        return received

    def _move(
        self,
        pieces: Sequence[memoryview],
        end_s: float,
        timeout_option: int,
        some: Callable[[Sequence[memoryview]], int],
    ) -> None:
        rest, first, heard_s = list(pieces), 0, None
        try:
            while first < len(rest):
                self._set_timeout(timeout_option, end_s)
                # Where the time is over, this is short, or raises if nothing moved at all.
                try:
                    first = _skip(rest, first, some(rest[first : first + _MAX_PIECES]))
                    heard_s = None
                except BlockingIOError:
                    heard_s = heard_s or time.monotonic() - _LONGEST_WAIT_S
                    if time.monotonic() - heard_s > _SILENCE_S:
                        raise ChannelLateError(f"the other end was silent for {_SILENCE_S:.0f} s") from None
        except OSError as error:
            raise ChannelError(error.strerror or str(error)) from error

    def _set_timeout(self, option: int, end_s: float) -> None:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise ChannelLateError("the time is over")
        wait_s = min(max(left_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)
        if wait_s != self._timeouts_s[option]:
            seconds, part_s = divmod(wait_s, 1)
            timeval = _TIMEVAL.pack(int(seconds), int(part_s * 1e6))
            self.socket.setsockopt(socket.SOL_SOCKET, option, timeval)
            self._timeouts_s[option] = wait_s


def _skip(pieces: list[memoryview], first: int, nbytes: int) -> int:
    """Cut the first `nbytes` off pieces[first:]; returns the index of the first piece that is left."""
    while first < len(pieces) and nbytes >= len(pieces[first]):
        nbytes -= len(pieces[first])
        first += 1
    if nbytes:
        pieces[first] = pieces[first][nbytes:]
    return first
