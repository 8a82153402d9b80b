"""Memory that the processes of one host share, and that nothing has to clean up.

A segment is an anonymous file (memfd): it has no name in any file system, so the kernel frees it
when the last process that maps it is gone, however that process ended. Others reach it through
its owner's descriptor, `/proc/<pid>/fd/<fd>`; the address of a RegionHandle is "<pid>:<fd>".

    [0, nbytes)                 data
    [nbytes, nbytes + 1 page)   identity: magic, incarnation

The incarnation is drawn at random at creation. A process id or a descriptor that has been reused
leads to other bytes there, and mapping fails.
"""

from __future__ import annotations

import mmap
import os
import secrets

import numpy as np

from kvstore.errors import StagingError
from kvstore.host_memory import available_bytes
from kvstore.layout import PAGE_BYTES
from kvstore.transport import Bytes, RegionHandle

_MAGIC = b"DPSTAGE1"


class SharedSegment:
    """A mapping of one segment, by its owner or by another process of the host."""

    def __init__(self, region: RegionHandle, mapping: mmap.mmap, inode: int, owned_fd: int | None) -> None:
        self.region = region
        self._mapping = mapping
        self._inode = inode
        self._owned_fd = owned_fd
        self._data: Bytes | None = np.frombuffer(mapping, np.uint8)[: region.nbytes]

    @classmethod
    def create(cls, node_id: str, nbytes: int) -> SharedSegment:
        """Make a segment with every page in place: a page's first touch is ten times a copy."""
        available = available_bytes()
        if nbytes > available:
            raise StagingError(
                f"staging memory of {nbytes} bytes for {node_id} does not fit: "
                f"{available} bytes of memory are available; lower kvstore.staging_bytes"
            )
        incarnation = secrets.token_hex(8)
        fd = os.memfd_create(f"dualpath-{incarnation}", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, nbytes + PAGE_BYTES)
            mapping = _map(fd, nbytes)
        except OSError as error:
            os.close(fd)
            raise StagingError(
                f"cannot make staging memory of {nbytes} bytes for {node_id}: {error}"
            ) from error
        identity = _identity(incarnation)
        mapping[nbytes : nbytes + len(identity)] = identity
        region = RegionHandle(node_id, incarnation, nbytes, f"{os.getpid()}:{fd}")
        return cls(region, mapping, os.fstat(fd).st_ino, owned_fd=fd)

    @classmethod
    def attach(cls, region: RegionHandle) -> SharedSegment:
        """Map the segment of another process of this host, or raise StagingError."""
        path = _descriptor_path(region)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = os.open(path, flags)
        except OSError as error:
            raise StagingError(f"{_named(region)} is gone: cannot open {path}: {error}") from error
        try:
            status = os.fstat(fd)
            if status.st_size != region.nbytes + PAGE_BYTES:
                raise StagingError(f"{_named(region)} is gone: {path} is something else now")
            mapping = _map(fd, region.nbytes)
        except OSError as error:
            raise StagingError(f"cannot map {_named(region)}: {error}") from error
        finally:
            os.close(fd)
        identity = _identity(region.incarnation)
        if mapping[region.nbytes : region.nbytes + len(identity)] != identity:
            mapping.close()
            raise StagingError(f"{_named(region)} is gone: {path} is of another incarnation")
        return cls(region, mapping, status.st_ino, owned_fd=None)

    @property
    def data(self) -> Bytes:
        """The whole segment but its identity page."""
        assert self._data is not None, f"{_named(self.region)} is closed"
        return self._data

    def owner_is_alive(self) -> bool:
        """Does the owner still hold this very segment? False once it died or closed it."""
        try:
            return os.stat(_descriptor_path(self.region)).st_ino == self._inode
        except OSError:
            return False

    def open_descriptor(self) -> int:
        """A descriptor of the segment that nobody else has, to lock it by; the caller closes it.

        Raises StagingError if its owner is gone.
        """
        try:
            fd = os.open(_descriptor_path(self.region), os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise StagingError(f"{_named(self.region)} is gone: {error}") from error
        if os.fstat(fd).st_ino != self._inode:
            os.close(fd)
            raise StagingError(f"{_named(self.region)} is gone: its descriptor is something else now")
        return fd

    def close(self) -> None:
        """Let go of the segment. Idempotent.

        Views that others took of `data` stay valid; the mapping goes when the last of them does.
        """
        if self._data is None:
            return
        self._data = None
        if self._owned_fd is not None:
            os.close(self._owned_fd)
        try:
            self._mapping.close()
        except BufferError:
            del self._mapping


def _map(fd: int, nbytes: int) -> mmap.mmap:
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    return mmap.mmap(fd, nbytes + PAGE_BYTES, flags=flags)


def _identity(incarnation: str) -> bytes:
    return _MAGIC + incarnation.encode()


def _named(region: RegionHandle) -> str:
    return f"staging memory {region.incarnation} of {region.node_id}"


def _descriptor_path(region: RegionHandle) -> str:
    try:
        pid, fd = (int(part) for part in region.address.split(":"))
    except ValueError:
        raise StagingError(
            f"{_named(region)} cannot be mapped: {region.address!r} is no address of shared memory, "
            "which reads like 4000:7 (process id and descriptor)"
        ) from None
    return f"/proc/{pid}/fd/{fd}"
