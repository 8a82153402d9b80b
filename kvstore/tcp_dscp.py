"""The differentiated-services code point (DSCP) of a socket, set and read back.

The two low bits of the byte are the kernel's (congestion notification). A kernel or a container may ignore
what is asked for, so what was set is never taken for what is.
"""

from __future__ import annotations

import socket


def set_dscp(sock: socket.socket, dscp: int) -> int:
    """Ask for `dscp` (0..63) on everything the socket sends; returns what the socket then has."""
    level, option = _option(sock)
    sock.setsockopt(level, option, dscp << 2)
    return sock.getsockopt(level, option) >> 2


def _option(sock: socket.socket) -> tuple[int, int]:
    if sock.family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, socket.IPV6_TCLASS
    return socket.IPPROTO_IP, socket.IP_TOS
