"""Lays out RDMA work requests in memory: a whole transfer at once, by numpy, as the NIC's library reads them.

Decides how pieces become work requests. It knows no device, and needs neither one nor pyverbs: what one work
request costs in Python objects (2 us) is more than what 400 Gb/s leaves for a Layer Block of 42 KB (0.8 us).

    pieces that follow one another at both ends     are one piece
    a piece above MAX_REQUEST_BYTES                 is several
    pieces that follow one another at the far end   are gathered (WRITE) or scattered (READ) by one request,
                                                    up to `max_pieces`
    requests of a batch                             are one linked list, posted with one doorbell; the last
                                                    of them tells when all are done

`struct ibv_send_wr` and `struct ibv_sge` are a part of libibverbs' binary interface and do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kvstore.transport import Offsets

MAX_REQUEST_BYTES = 1 << 20
"""Larger requests are no faster, and what a NIC sends again when a packet is lost is a request."""

REQUEST = np.dtype(
    {
        "names": [
            "wr_id",
            "next",
            "sg_list",
            "num_sge",
            "opcode",
            "send_flags",
            "remote_address",
            "rkey",
        ],
        "formats": ["<u8", "<u8", "<u8", "<i4", "<i4", "<u4", "<u8", "<u4"],
        "offsets": [0, 8, 16, 24, 28, 32, 40, 48],
        "itemsize": 128,
    }
)
"""struct ibv_send_wr of a 64-bit machine, as far as RDMA READ and WRITE use it; the rest is zero."""
PIECE = np.dtype([("address", "<u8"), ("nbytes", "<u4"), ("lkey", "<u4")])
"""struct ibv_sge."""
_SIGNALED = 1 << 1


class Opcode(IntEnum):
    """enum ibv_wr_opcode, as far as it is used."""

    WRITE = 0
    READ = 4


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What a queue pair takes."""

    max_pieces: int
    """Of local memory, in one request."""
    batch: int
    """Requests that are posted with one doorbell."""


@dataclass(frozen=True, slots=True)
class RemoteMemory:
    """A peer's registered memory."""

    address: int
    rkey: int


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Columns of equal length: where each piece is at both ends."""

    addresses: Offsets
    """In the memory of this process."""
    lkeys: Offsets
    """Of the registered memory that each lies in."""
    remote_offsets: Offsets
    nbytes: Offsets

    def __len__(self) -> int:
        return len(self.nbytes)

    @classmethod
    def concatenate(cls, parts: Sequence[Pieces]) -> Pieces:
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.addresses for part in parts]),
            np.concatenate([part.lkeys for part in parts]),
            np.concatenate([part.remote_offsets for part in parts]),
            np.concatenate([part.nbytes for part in parts]),
        )

    def take(self, index: npt.NDArray[np.bool_] | Offsets) -> Pieces:
        return Pieces(
            self.addresses[index], self.lkeys[index], self.remote_offsets[index], self.nbytes[index]
        )


@dataclass(frozen=True, slots=True, eq=False)
class RequestList:
    """Work requests and the pieces that they point to: both must live until they are posted."""

    requests: npt.NDArray[np.void]
    """[requests] of REQUEST. `wr_id` is the request's place in the list."""
    pieces: npt.NDArray[np.void]
    """[pieces] of PIECE."""
    batch: int

    def __len__(self) -> int:
        return len(self.requests)

    def batches(self) -> Iterator[npt.NDArray[np.void]]:
        """Parts that are each one linked list, in the order in which they are to be posted."""
        for first in range(0, len(self.requests), self.batch):
            yield self.requests[first : first + self.batch]


def build_requests(pieces: Pieces, opcode: Opcode, remote: RemoteMemory, shape: RequestShape) -> RequestList:
    """All work requests of a transfer, ready to be posted batch by batch."""
    pieces = _cut(_merge(pieces))
    num_pieces = len(pieces)
    local = np.empty(num_pieces, PIECE)
    local["address"], local["nbytes"], local["lkey"] = pieces.addresses, pieces.nbytes, pieces.lkeys
    firsts = _gather(pieces, shape.max_pieces)
    requests = np.zeros(len(firsts), REQUEST)
    places = np.arange(len(firsts), dtype=np.int64)
    requests["wr_id"] = places
    requests["next"] = _address(requests) + (places + 1) * REQUEST.itemsize
    requests["sg_list"] = _address(local) + firsts * PIECE.itemsize
    requests["num_sge"] = np.diff(firsts, append=num_pieces)
    requests["opcode"] = opcode
    requests["remote_address"] = pieces.remote_offsets[firsts] + remote.address
    requests["rkey"] = remote.rkey
    for last in (slice(shape.batch - 1, None, shape.batch), slice(-1, None)):
        requests["next"][last] = 0
        requests["send_flags"][last] = _SIGNALED
    return RequestList(requests, local, shape.batch)


def _merge(pieces: Pieces) -> Pieces:
    """The same bytes without empty pieces, those that follow one another at both ends made one."""
    if not pieces.nbytes.all():
        pieces = pieces.take(pieces.nbytes != 0)
    if len(pieces) < 2:
        return pieces
    apart = (
        _do_not_follow(pieces.addresses, pieces.nbytes)
        | _do_not_follow(pieces.remote_offsets, pieces.nbytes)
        | (pieces.lkeys[1:] != pieces.lkeys[:-1])
    )
    if apart.all():
        return pieces
    firsts = np.flatnonzero(np.concatenate(([True], apart)))
    merged = pieces.take(firsts)
    return Pieces(
        merged.addresses, merged.lkeys, merged.remote_offsets, np.add.reduceat(pieces.nbytes, firsts)
    )


def _cut(pieces: Pieces) -> Pieces:
    """The same bytes in pieces of MAX_REQUEST_BYTES at most."""
    if not len(pieces) or pieces.nbytes.max() <= MAX_REQUEST_BYTES:
        return pieces
    num_parts = -(-pieces.nbytes // MAX_REQUEST_BYTES)
    whole = pieces.take(np.repeat(np.arange(len(pieces)), num_parts))
    ends = np.cumsum(num_parts)
    shifts = (np.arange(ends[-1]) - np.repeat(ends - num_parts, num_parts)) * MAX_REQUEST_BYTES
    return Pieces(
        whole.addresses + shifts,
        whole.lkeys,
        whole.remote_offsets + shifts,
        np.minimum(whole.nbytes - shifts, MAX_REQUEST_BYTES),
    )


def _gather(pieces: Pieces, max_pieces: int) -> Offsets:
    """The first piece of each request."""
    if len(pieces) < 2 or max_pieces == 1:
        return np.arange(len(pieces))
    apart = np.concatenate(([True], _do_not_follow(pieces.remote_offsets, pieces.nbytes)))
    if apart.all():
        return np.arange(len(pieces))
    # Within a run of neighbours a request ends where `max_pieces` or MAX_REQUEST_BYTES are full.
    places = np.arange(len(pieces))
    run_starts = np.maximum.accumulate(np.where(apart, places, 0))
    in_run = places - run_starts
    bytes_before = np.cumsum(pieces.nbytes) - pieces.nbytes
    windows = (bytes_before - bytes_before[run_starts]) // MAX_REQUEST_BYTES
    full = np.concatenate(([False], windows[1:] != windows[:-1]))
    return np.flatnonzero(apart | full | (in_run % max_pieces == 0))


def _do_not_follow(addresses: Offsets, nbytes: Offsets) -> npt.NDArray[np.bool_]:
    """Of each piece but the first: does it begin elsewhere than where the one before ends?"""
    apart: npt.NDArray[np.bool_] = addresses[1:] != addresses[:-1] + nbytes[:-1]
    return apart


def _address(array: npt.NDArray[np.void]) -> int:
    return int(array.__array_interface__["data"][0])
