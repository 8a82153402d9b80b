"""A client's verbs connections: queue pairs to one incarnation of one memory, in one class.

Decides how one is opened and how it ends. Beside a queue pair stays the TCP connection by which it was
agreed on: when a process dies its kernel ends that at once, while RDMA alone would not tell for seconds.
After a call that failed nothing of it arrives late:

    here    the queue pair is closed before the error is raised, so a READ writes nothing more here
    there   the server is told to close its end and answers when it has, so a WRITE that is still in the
            network finds no queue pair. Without an answer `fenced` is False, and the place is not to be used
            again until the peer is known to be dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from kvstore.errors import TransferError
from kvstore.job_token import JobToken
from kvstore.keyed_connect import ask, connect, other_incarnation, server_address
from kvstore.tcp_channel import ChannelError, ChannelLateError, TcpChannel
from kvstore.tcp_wire import region_id
from kvstore.traffic import ClassSettings, TrafficClass
from kvstore.transport import RegionHandle
from kvstore.verbs_device import VerbsDevice
from kvstore.verbs_devices import Link
from kvstore.verbs_handshake import VERBS_DIALECT, Answer, PathClass, Status, Wish
from kvstore.verbs_library import VerbsError
from kvstore.verbs_queue_pair import BATCH, QueuePair
from kvstore.verbs_requests import Opcode, Pieces, RemoteMemory, RequestShape, build_requests

logger = logging.getLogger(__name__)

SCHEME = "verbs+"
"""Before the TCP address at which queue pairs to a region are agreed on."""
FENCE = b"F"
"""What is sent to have the peer close its end, and its answer."""
FENCE_S = 0.5
"""Longest that a peer is waited for to close its end."""


class VerbsConnection:
    """A Connection of kvstore.connection_pool."""

    def __init__(self, control: TcpChannel, pair: QueuePair, peer: Answer, max_pieces: int) -> None:
        self.fenced = True
        self._was_shut = False
        self._control = control
        self._pair = pair
        self._shape = RequestShape(max_pieces, BATCH)
        self._memory = RemoteMemory(peer.address, peer.rkey)

    def move(self, opcode: Opcode, pieces: Pieces, end_s: float) -> None:
        """Return when all bytes are in place. Raises VerbsError, ChannelError or ChannelLateError."""
        requests = build_requests(pieces, opcode, self._memory, self._shape)
        num_posted = num_done = 0
        for batch in requests.batches():
            while num_posted - num_done > BATCH:
                num_done = self._pair.wait(self._control, end_s) + 1
            if time.monotonic() >= end_s:
                raise ChannelLateError("the time is over")
            self._pair.post(batch)
            num_posted += len(batch)
        while num_done < num_posted:
            num_done = self._pair.wait(self._control, end_s) + 1

    def is_quiet(self) -> bool:
        return self._control.is_quiet()

    def shut(self) -> None:
        self._was_shut = True
        self._control.shut()

    def close(self) -> None:
        self._control.close()
        with suppress(VerbsError):
            self._pair.close()

    def abort(self) -> None:
        """Close both ends; `fenced` then tells whether the other one is known to be closed."""
        try:
            self._pair.close()
        except VerbsError as error:
            logger.warning("%s", error)
        self.fenced = self._fence()
        self._control.abort()

    def _fence(self) -> bool:
        answer, end_s = bytearray(len(FENCE)), time.monotonic() + FENCE_S
        try:
            self._control.send([memoryview(FENCE)], end_s)
            self._control.receive([memoryview(answer)], end_s)
        except ChannelLateError:
            return False
        except ChannelError:  # unless this process ended it: the peer's is gone, and its queue pairs with it
            return not self._was_shut
        return answer == FENCE


class VerbsConnector:
    """Opens connections whose packets are marked with their class, at both ends."""

    def __init__(
        self,
        token: JobToken,
        device: VerbsDevice,
        classes: Mapping[TrafficClass, ClassSettings],
        rail: int,
    ) -> None:
        self._token = token
        self._rail = rail
        self._device = device
        self._classes = classes

    def open(self, region: RegionHandle, traffic_class: TrafficClass, end_s: float) -> VerbsConnection:
        """Raises TransferError, or ChannelLateError when `end_s` of time.monotonic() is over."""
        control = connect(region, server_address(region, SCHEME), end_s, lambda sock: None)
        pair: QueuePair | None = None
        try:
            pair = QueuePair(self._device)
            wish = Wish(region_id(region.incarnation), traffic_class, self._rail, pair.end)
            answer = Answer.unpack(ask(control, region, self._token, VERBS_DIALECT, wish.pack(), end_s))
            if answer.status is Status.OTHER_INCARNATION:
                raise other_incarnation(region)
            if answer.status is not Status.OK:
                raise TransferError(f"{region.node_id} could not make a queue pair; its log says why")
            own = pair.connect(answer.end, self._classes[traffic_class])
            self._require_class(traffic_class, own, "at this end")
            self._require_class(traffic_class, answer.path, f"at {region.node_id}")
            return VerbsConnection(control, pair, answer, self._device.limits.max_pieces)
        except BaseException as error:
            control.close()
            if pair is not None:
                with suppress(VerbsError):
                    pair.close()
            if isinstance(error, VerbsError):
                raise TransferError(f"no queue pair to {region.node_id}: {error}") from error
            raise

    def _require_class(self, traffic_class: TrafficClass, path: PathClass, where: str) -> None:
        """What marks packets on this kind of link must be as in the class table; the other field is told."""
        wanted = self._classes[traffic_class]
        values = {
            "traffic class": (path.traffic_class, wanted.dscp << 2),
            "service level": (path.service_level, wanted.service_level),
        }
        on_ethernet = self._device.choice.port.link is Link.ETHERNET
        name = "traffic class" if on_ethernet else "service level"
        found, expected = values.pop(name)
        ((other, (other_found, other_expected)),) = values.items()
        logger.debug(
            "class %s %s: %s %d; %s %d of %d, which marks nothing on this link",
            traffic_class.value,
            where,
            name,
            found,
            other,
            other_found,
            other_expected,
        )
        if found != expected:
            raise TransferError(
                f"a queue pair of class {traffic_class.value} has {name} {found} {where}, not {expected}; "
                "the class table or the device's settings differ there"
            )
