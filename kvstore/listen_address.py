"""What `transport.listen` means on this host: an IP address, a name of one, or a network interface."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

from kvstore.errors import StagingError

_SIOCGIFADDR = 0x8915
_REQUEST = struct.Struct("@16s24x")
"""struct ifreq: the interface's name, and room for the answer."""
_ANSWER = slice(20, 24)
"""Where in it the IPv4 address lies."""


def listen_address(listen: str) -> tuple[socket.AddressFamily, str]:
    """The one numeric address of this host that is meant. Raises StagingError if there is none."""
    try:
        if listen in (name for _, name in socket.if_nameindex()):
            return socket.AF_INET, _of_interface(listen)
        family, _, _, _, address = socket.getaddrinfo(listen or "0.0.0.0", 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StagingError(f"cannot serve staging memory at transport.listen={listen!r}: {error}") from error
    ip = str(address[0])
    if ipaddress.ip_address(ip).is_unspecified:
        raise StagingError(
            f"transport.listen={listen!r} would open staging memory on every network of this machine; "
            "name one address, for example 127.0.0.1"
        )
    return family, ip


def listen_interface(listen: str) -> str:
    """The network interface of that address. Raises StagingError if there is none."""
    _, ip = listen_address(listen)
    if ipaddress.ip_address(ip).is_loopback:
        return "lo"
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # it has no IPv4 address
            if _of_interface(name) == ip:
                return name
    raise StagingError(f"no network interface has the address {ip} of transport.listen={listen!r}")


def _of_interface(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFADDR, _REQUEST.pack(name.encode()))
    return socket.inet_ntoa(answer[_ANSWER])
