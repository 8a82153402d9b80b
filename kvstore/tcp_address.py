"""How a RegionHandle names a TCP port: "tcp:<ip>:<port>", an IPv6 address in brackets.

Only numbers travel: a peer looks nothing up, so no name server can lead it elsewhere or hold it up.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

_SCHEME = "tcp:"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """One end of a connection."""

    ip: str
    port: int

    @classmethod
    def parse(cls, text: str) -> TcpAddress:
        """Of a RegionHandle's `address`; raises ValueError if it is none of ours."""
        host, colon, port = text.removeprefix(_SCHEME).rpartition(":")
        try:
            if not text.startswith(_SCHEME) or not colon:
                raise ValueError
            address = cls(str(ipaddress.ip_address(host.strip("[]"))), int(port))
            if not 1 <= address.port <= 65535:
                raise ValueError
        except ValueError:
            raise ValueError(f"{text!r} is no TCP address, which reads like tcp:127.0.0.1:4000") from None
        return address

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET

    def __str__(self) -> str:
        return f"{_SCHEME}[{self.ip}]:{self.port}" if ":" in self.ip else f"{_SCHEME}{self.ip}:{self.port}"
