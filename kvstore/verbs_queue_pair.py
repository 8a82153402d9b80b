"""A reliable-connected queue pair, its completion queue, and how to wait for it without Python's GIL.

Decides the attributes of a connection. One thread at a time owns a queue pair: it posts, waits in poll(2) on
the descriptor of the completion channel, during which other threads go on, and drains what completed.
"""

from __future__ import annotations

import ipaddress
import math
import secrets
import select
import time

import numpy as np
import numpy.typing as npt

from kvstore.tcp_channel import ChannelError, ChannelLateError, TcpChannel
from kvstore.traffic import ClassSettings
from kvstore.verbs_device import REMOTE, VerbsDevice
from kvstore.verbs_devices import Link
from kvstore.verbs_handshake import PathClass, QueuePairEnd
from kvstore.verbs_library import (
    CQ,
    GID,
    QP,
    AHAttr,
    Doorbell,
    GlobalRoute,
    QPAttr,
    QPCap,
    QPInitAttr,
    VerbsError,
    enums,
    open_channel,
    status_name,
    verbs_errors,
)

BATCH = 64
"""Work requests that are posted with one doorbell; two batches are under way at once."""
ACK_TIMEOUT = 17
"""A packet that is not acknowledged in 4.096 us * 2 ** this (0.5 s) is sent again, _RETRIES times. A NIC may
take up to four times as long. KV traffic waits behind MODEL traffic, so this must not be short."""
_RETRIES = 6
"""Not the largest number, 7: soft-RoCE takes that for no end."""
_RNR_TIMER = 12
_HOP_LIMIT = 64
_PSN_BITS = 24
_LONGEST_WAIT_S = 60.0
_COMPLETIONS = 16
"""Taken from the queue at once; only the last request of a batch makes one."""


class QueuePair:
    """One end of a connection. Made in one thread, then owned by one at a time."""

    def __init__(self, device: VerbsDevice) -> None:
        """Raises VerbsError."""
        self._device = device
        with verbs_errors("making a queue pair"):
            self._channel, self._descriptor = open_channel(device.context)
            self._cq = CQ(device.context, 2 * BATCH, None, self._channel)
            capacity = QPCap(
                max_send_wr=2 * BATCH, max_recv_wr=1, max_send_sge=device.limits.max_pieces, max_recv_sge=1
            )
            init = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=self._cq, rcq=self._cq, cap=capacity)
            self._qp = QP(device.pd, init)
            attributes = QPAttr(port_num=device.choice.port.port)
            attributes.qp_access_flags = REMOTE
            self._qp.to_init(attributes)
        self._closed = False
        self._doorbell = Doorbell()
        self._first_psn = secrets.randbits(_PSN_BITS)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    @property
    def end(self) -> QueuePairEnd:
        """What the other end must be told."""
        port, limits = self._device.choice.port, self._device.limits
        return QueuePairEnd(
            qp_num=self._qp.qp_num,
            first_psn=self._first_psn,
            lid=limits.lid,
            link=port.link.value,
            mtu_code=_mtu_code(port.mtu_bytes),
            reads_answered=limits.reads_answered,
            reads_asked=limits.reads_asked,
            gid=ipaddress.IPv6Address(self._device.choice.gid.gid).packed,
        )

    def connect(self, peer: QueuePairEnd, settings: ClassSettings) -> PathClass:
        """Connect to the other end with the marks of a class; returns the marks that it then has.

        Raises VerbsError.
        """
        own = self.end
        if peer.link != own.link:
            raise VerbsError(
                f"{self._device.choice.port} is on {Link(own.link).name}, and the other end on another kind"
            )
        attributes = QPAttr(port_num=self._device.choice.port.port)
        attributes.path_mtu = min(own.mtu_code, peer.mtu_code)
        attributes.dest_qp_num = peer.qp_num
        attributes.rq_psn = peer.first_psn
        attributes.max_dest_rd_atomic = min(own.reads_answered, peer.reads_asked)
        attributes.min_rnr_timer = _RNR_TIMER
        attributes.ah_attr = self._route(peer, settings)
        attributes.sq_psn = own.first_psn
        attributes.timeout = ACK_TIMEOUT
        attributes.retry_cnt = attributes.rnr_retry = _RETRIES
        attributes.max_rd_atomic = min(own.reads_asked, peer.reads_answered)
        with verbs_errors("connecting a queue pair"):
            self._qp.to_rtr(attributes)
            self._qp.to_rts(attributes)
        return self.path()

    def path(self) -> PathClass:
        """How its packets are marked, as the device tells."""
        with verbs_errors("reading a queue pair's class back"):
            attributes, _ = self._qp.query(enums.IBV_QP_AV)
            route = attributes.ah_attr
            return PathClass(route.sl, route.traffic_class if route.is_global else 0)

    def post(self, requests: npt.NDArray[np.void]) -> None:
        """One batch, with one doorbell. Raises VerbsError."""
        self._doorbell.ring(self._qp, requests)

    def wait(self, control: TcpChannel, end_s: float) -> int:
        """Return the place of the last request that is done, once a batch is.

        Raises VerbsError if a request failed, ChannelLateError after `end_s` of time.monotonic(), and
        ChannelError when `control`, which leads to the other end's process, ends.
        """
        while True:
            done = self._drain()
            if done is None:
                self._arm()
                done = self._drain()  # one that came before there was somebody to tell
            if done is not None:
                return done
            self._sleep(control, end_s)

    def close(self) -> None:
        """Give it back: what is not done is not done any more, and the device touches nothing after this.

        In the error state it flushes what it has; destroying it waits for what the device has in hand.
        Idempotent. Raises VerbsError.
        """
        if self._closed:
            return
        self._closed = True
        with verbs_errors("closing a queue pair"):
            try:
                self._qp.modify(QPAttr(qp_state=enums.IBV_QPS_ERR), enums.IBV_QP_STATE)
            finally:
                self._qp.close()
                self._cq.close()
                self._channel.close()

    def _drain(self) -> int | None:
        """The place of the last request that is done, if any has come to its end. Raises VerbsError."""
        with verbs_errors("polling for completions"):
            num, completions = self._cq.poll(_COMPLETIONS)
        for completion in completions:
            if completion.status != enums.IBV_WC_SUCCESS:
                raise VerbsError(_failure(completion.status))
        return int(completions[-1].wr_id) if num else None

    def _arm(self) -> None:
        with verbs_errors("asking for completion events"):
            self._cq.req_notify()

    def _sleep(self, control: TcpChannel, end_s: float) -> None:
        """Until there is an event, without the GIL."""
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise ChannelLateError("the time is over")
        self._poll.register(control.socket, select.POLLIN | select.POLLRDHUP)
        ready = dict(self._poll.poll(math.ceil(min(left_s, _LONGEST_WAIT_S) * 1000)))
        if self._descriptor in ready:
            with verbs_errors("taking a completion event"):
                self._channel.get_cq_event(self._cq)
                self._cq.ack_events(1)
        elif ready:
            raise ChannelError("the other end closed the connection")

    def _route(self, peer: QueuePairEnd, settings: ClassSettings) -> AHAttr:
        port, level = self._device.choice.port, settings.service_level
        if port.link is Link.INFINIBAND:
            return AHAttr(dlid=peer.lid, sl=level, port_num=port.port)
        route = GlobalRoute(
            dgid=GID(ipaddress.IPv6Address(peer.gid).exploded),
            sgid_index=self._device.choice.gid.index,
            hop_limit=_HOP_LIMIT,
            traffic_class=settings.dscp << 2,
        )
        return AHAttr(sl=level, is_global=1, port_num=port.port, gr=route)


def _mtu_code(mtu_bytes: int) -> int:
    """enum ibv_mtu."""
    return mtu_bytes.bit_length() - 8


def _failure(status: int) -> str:
    match status:
        case enums.IBV_WC_REM_ACCESS_ERR:
            return "REM_ACCESS_ERR: its memory key, or the place in its memory, was refused there"
        case enums.IBV_WC_RETRY_EXC_ERR:
            return "RETRY_EXC_ERR: its NIC acknowledges nothing"
        case enums.IBV_WC_WR_FLUSH_ERR:
            return "WR_FLUSH_ERR: the queue pair was stopped"
    return status_name(status)
