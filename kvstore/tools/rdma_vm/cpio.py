"""Writes the archive a Linux kernel unpacks as its first file system (cpio, the `newc` format).

Pure. It knows no files: a name, a mode and bytes come in, one row of bytes goes out.
Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

ALIGNMENT = 4
TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder; `mode` is that of `os.stat`, file type included."""

    name: str
    mode: int
    content: bytes = b""


def folder(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def program(name: str, content: bytes) -> Entry:
    return Entry(name, stat.S_IFREG | 0o755, content)


def archive(entries: Iterable[Entry]) -> bytes:
    """All of `entries`, in their order, owned by root; a folder comes before what lies in it."""
    numbered = enumerate([*entries, Entry(TRAILER, 0)], 1)
    return b"".join(_record(inode, entry) for inode, entry in numbered)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    owner = group = modified = major = minor = device_major = device_minor = checksum = 0
    links = 1
    fields = (
        inode,
        entry.mode,
        owner,
        group,
        links,
        modified,
        len(entry.content),
        major,
        minor,
        device_major,
        device_minor,
        len(name),
        checksum,
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)
