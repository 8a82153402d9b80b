"""The one address of pyverbs: its names, what differs between its versions, and what it lacks.

Importing this module raises ImportError where pyverbs is not installed (kvstore.verbs_devices asks for it).
pyverbs holds Python's GIL in every call. So nothing here waits: who waits for a completion does so on the
descriptor of its channel.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.device import Context, get_device_list
from pyverbs.mr import MR, DmaBufMR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from kvstore.verbs_requests import REQUEST

try:
    import pyverbs.enums as enums  # up to rdma-core 4x
except ImportError:
    import pyverbs.libibverbs_enums as enums

__all__ = [
    "CQ",
    "GID",
    "MR",
    "PD",
    "QP",
    "AHAttr",
    "CompChannel",
    "Context",
    "DmaBufMR",
    "Doorbell",
    "GlobalRoute",
    "PyverbsRDMAError",
    "QPAttr",
    "QPCap",
    "QPInitAttr",
    "VerbsError",
    "enums",
    "get_device_list",
    "open_channel",
    "status_name",
    "verbs_errors",
]

_MARK = 0x6475616C70617468
_OPENING = threading.Lock()
_STATUS_NAMES: dict[int, str] = {
    value: name.removeprefix("IBV_WC_")
    for name, value in vars(enums).items()
    if name.startswith("IBV_WC_") and name.endswith("_ERR")
}


class VerbsError(Exception):
    """The device refused, or a work request failed; its queue pair is of no use any more."""


@contextmanager
def verbs_errors(doing: str) -> Iterator[None]:
    """Turn what pyverbs raises into a VerbsError that says what was being done."""
    try:
        yield
    except PyverbsError as error:
        raise VerbsError(f"{doing}: {error}") from error


def status_name(status: int) -> str:
    """Of a completion that is no success, for example REM_ACCESS_ERR."""
    return _STATUS_NAMES.get(status, f"completion status {status}")


def open_channel(context: Any) -> tuple[Any, int]:
    """A completion channel, and its descriptor to wait on.

    Newer versions of pyverbs tell the descriptor; before, it is the one that appears with the channel.
    """
    if hasattr(CompChannel, "fd"):
        channel = CompChannel(context)
        return channel, channel.fd
    with _OPENING:
        for _ in range(100):
            before = _event_descriptors()
            channel = CompChannel(context)
            new = _event_descriptors() - before
            if len(new) == 1:
                return channel, new.pop()
            channel.close()  # some other library of this process opened one at the same time
    raise VerbsError("cannot tell which descriptor belongs to a new completion channel")


def _event_descriptors() -> set[int]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{fd}"):
                found.add(int(fd))
        except OSError:  # closed meanwhile
            continue
    return found


class Doorbell:
    """Posts linked lists of work requests that numpy laid out (kvstore.verbs_requests). For one thread.

    pyverbs takes a SendWR, in whose object the C structure lies, and libibverbs follows its `next` pointer.
    So the first request of a list is copied into one such object, where its place is found by a mark.
    """

    def __init__(self) -> None:
        """Raises VerbsError if this version of pyverbs keeps the structure elsewhere."""
        self._head = SendWR(wr_id=_MARK, num_sge=1, sg=[SGE(0, 0, 0)])
        nbytes = type(self._head).__basicsize__
        place = ctypes.string_at(id(self._head), nbytes).find(_MARK.to_bytes(8, "little"))
        if not 0 <= place <= nbytes - REQUEST.itemsize:
            raise VerbsError("this version of pyverbs keeps work requests where they cannot be reached")
        memory = (ctypes.c_uint8 * REQUEST.itemsize).from_address(id(self._head) + place)
        self._request = np.frombuffer(memoryview(memory), np.uint8)
        self._own = self._request.copy()

    def ring(self, qp: Any, requests: npt.NDArray[np.void]) -> None:
        """Post one batch of a RequestList. Raises VerbsError; some of it may then be under way."""
        self._request[:] = requests[:1].view(np.uint8)
        try:
            with verbs_errors("posting work requests"):
                qp.post_send(self._head)
        finally:
            # What the head points to is pyverbs' own again: it frees that some day.
            self._request[:] = self._own
