"""Opens both ends of the transport that the configuration names."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.job_token import JobToken
from kvstore.region_server import RegionServer, SharedMemoryServer
from kvstore.shm_transport import SharedMemoryTransport
from kvstore.tcp_server import TcpServer
from kvstore.tcp_transport import TcpTransport
from kvstore.transport import Transport
from kvstore.transport_config import TransportConfig


@dataclass(frozen=True, slots=True)
class TransportSpec:
    """What every process of a job opens its end from."""

    config: TransportConfig
    token: JobToken
    """The job's own; with it a process is let in, without it not (tcp)."""


def open_transport(spec: TransportSpec) -> Transport:
    """The end that drives: an engine's."""
    match spec.config.kind:
        case "shm":
            return SharedMemoryTransport()
        case "tcp":
            return TcpTransport(spec.token)


def open_region_server(spec: TransportSpec) -> RegionServer:
    """The passive end: a node's. Raises StagingError if it cannot listen where it should."""
    match spec.config.kind:
        case "shm":
            return SharedMemoryServer()
        case "tcp":
            return TcpServer(spec.token, listen=spec.config.listen)
