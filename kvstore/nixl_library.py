"""The one address of nixl: an agent with its UCX backend, and what it registers and moves.

Importing this module raises ImportError where no package of NIXL is installed. `nixl` picks the build for the
machine's CUDA; `nixl-cu12` alone also runs on machines without CUDA, with host memory.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import numpy as np

from kvstore.transport import Bytes, Offsets

# At a transfer that is given up UCX warns of each of its requests, up to a thousand lines of them.
os.environ.setdefault("UCX_LOG_LEVEL", "error")
try:
    from nixl import _bindings as bindings
    from nixl._api import nixl_agent, nixl_agent_config
except ImportError:
    from nixl_cu12 import _bindings as bindings
    from nixl_cu12._api import nixl_agent, nixl_agent_config

if "NIXL_LOG_LEVEL" not in os.environ:  # it tells of each agent, on standard output
    logging.getLogger("nixl").setLevel(logging.WARNING)

_ERRORS: tuple[type[Exception], ...] = tuple(
    value for name, value in vars(bindings).items() if name.startswith("nixl") and name.endswith("Error")
)
_BACKEND = "UCX"
_HOST_MEMORY = "DRAM"


class NixlError(Exception):
    """NIXL refused, or a transfer failed; its agent is of no use any more."""


class Direction(Enum):
    """Which way the bytes go, as seen from who asks; by NIXL's names."""

    READ = "READ"
    WRITE = "WRITE"


class NixlTransfer:
    """A list of moves that is under way. It goes on by itself only while somebody asks whether it is done."""

    def __init__(self, agent: Any, handle: Any, state: str) -> None:
        self._agent = agent
        self._handle = handle
        self._state = state

    def is_done(self) -> bool:
        """Raises NixlError if it failed."""
        if self._state == "PROC":
            with _errors("a transfer failed"):
                self._state = self._agent.check_xfer_state(self._handle)
        if self._state == "ERR":
            raise NixlError("a transfer failed")
        return self._state == "DONE"

    def release(self) -> None:
        """Forget it; what is still under way is not stopped by that."""
        with _errors("forgetting a transfer"):
            self._handle.release()


class NixlAgent:
    """One agent, that meets at most one other. For one thread at a time."""

    def __init__(self, device: str, *, serves: bool) -> None:
        """On the network device that UCX calls so. `serves`: peers are answered whatever this process does.

        Raises NixlError.
        """
        with _errors(f"NIXL cannot use UCX on the device {device!r}"):
            config = nixl_agent_config(enable_prog_thread=serves, backends=[])
            self._agent: Any = nixl_agent(f"dualpath-{secrets.token_hex(8)}", config)
            self._agent.create_backend(_BACKEND, {"engine_config": f"NET_DEVICES={device}"})
        self._peer = ""
        self._memories: list[Bytes] = []
        """They are to live as long as what may touch them."""

    def register(self, memory: Bytes) -> int:
        """The address of a row of host memory that this agent may move. Raises NixlError."""
        address = int(memory.__array_interface__["data"][0])
        with _errors(f"{memory.nbytes} bytes cannot be registered"):
            self._agent.register_memory([(address, memory.nbytes, 0, "")], _HOST_MEMORY)
        self._memories.append(memory)
        return address

    def metadata(self) -> bytes:
        """What another agent needs, to reach all that is registered here by now."""
        with _errors("NIXL does not describe itself"):
            described: bytes = self._agent.get_agent_metadata()
        return described

    def meet(self, metadata: bytes) -> None:
        """Learn of the other agent. Raises NixlError."""
        with _errors("what the other end says of itself is of no use to NIXL"):
            name = self._agent.add_remote_agent(metadata)
        self._peer = name.decode() if isinstance(name, bytes) else name

    def start(self, direction: Direction, local: Offsets, remote: Offsets, sizes: Offsets) -> NixlTransfer:
        """Begin to move `sizes[i]` bytes between two addresses each. Raises NixlError."""
        with _errors("a transfer cannot be begun"):
            handle = self._agent.initialize_xfer(
                direction.value, self._descriptors(local, sizes), self._descriptors(remote, sizes), self._peer
            )
            return NixlTransfer(self._agent, handle, self._agent.transfer(handle))

    def close(self) -> None:
        """Nothing of its peer arrives after this. Its transfers must have been released. Idempotent."""
        self._agent = None  # it goes with the last reference to it
        self._memories.clear()

    def _descriptors(self, addresses: Offsets, sizes: Offsets) -> Any:
        rows = np.stack((addresses, sizes, np.zeros_like(sizes)), 1).astype(np.uint64)
        return self._agent.get_xfer_descs(rows, _HOST_MEMORY)


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    """Turn what NIXL raises into a NixlError that says what was being done."""
    try:
        yield
    except _ERRORS as error:
        raise NixlError(f"{doing}: {error}") from error
