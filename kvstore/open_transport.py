"""Opens both ends of the transport that the configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvstore.errors import StagingError, TransportUnavailable
from kvstore.job_token import JobToken
from kvstore.listen_address import listen_interface
from kvstore.region_server import RegionServer, SharedMemoryServer
from kvstore.shm_transport import SharedMemoryTransport
from kvstore.tcp_server import TcpServer
from kvstore.tcp_transport import TcpTransport
from kvstore.transport import Transport
from kvstore.transport_config import TransportConfig
from kvstore.verbs_devices import PortChoice, choose_rails, find_ports

_UNCHOSEN = "transport=auto is for kvstore.transport_choice to settle, once for all processes of a job"


@dataclass(frozen=True, slots=True)
class TransportSpec:
    """What every process of a job opens its end from."""

    config: TransportConfig
    token: JobToken
    """The job's own; with it a process is let in, without it not (tcp, verbs, nixl)."""
    rail: int = 0
    """verbs: which of the host's RDMA ports an engine drives, where several are equally good, and which of
    the peer's it reaches; counted round if there are fewer."""


def open_transport(spec: TransportSpec) -> Transport:
    """The end that drives: an engine's. Raises TransportUnavailable."""
    match spec.config.kind:
        case "shm":
            return SharedMemoryTransport()
        case "tcp":
            return TcpTransport(spec.token)
        case "verbs":
            rails = _choose_rails(spec.config)
            from kvstore.verbs_transport import VerbsTransport  # pyverbs is not on every machine

            return VerbsTransport(spec.token, rails[spec.rail % len(rails)], rail=spec.rail)
        case "nixl":
            device = _nixl_device(spec.config)
            with _installed():
                from kvstore.nixl_transport import NixlTransport
            return NixlTransport(spec.token, device)
        case "auto":
            raise AssertionError(_UNCHOSEN)


def open_region_server(spec: TransportSpec) -> RegionServer:
    """The passive end: a node's. Raises StagingError where it cannot listen, or TransportUnavailable."""
    match spec.config.kind:
        case "shm":
            return SharedMemoryServer()
        case "tcp":
            return TcpServer(spec.token, listen=spec.config.listen)
        case "verbs":
            rails = _choose_rails(spec.config)
            from kvstore.verbs_server import VerbsServer

            return VerbsServer(spec.token, rails, listen=spec.config.listen)
        case "nixl":
            device = _nixl_device(spec.config)
            with _installed():
                from kvstore.nixl_server import NixlServer
            return NixlServer(spec.token, device, listen=spec.config.listen)
        case "auto":
            raise AssertionError(_UNCHOSEN)


def _choose_rails(config: TransportConfig) -> tuple[PortChoice, ...]:
    return choose_rails(find_ports(), config.device, config.device_port, config.gid_index)


def _nixl_device(config: TransportConfig) -> str:
    try:
        return config.device or listen_interface(config.listen)
    except StagingError as error:
        raise TransportUnavailable(f"{error}; or name UCX's device with transport.device=...") from error


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise TransportUnavailable(
            f"transport=nixl needs NIXL: pip install 'dualpath-rollout[nixl]' ({error})"
        ) from error
