"""Which file system a directory lies on, and whether other hosts mount it too.

It decides nothing about I/O; it only reads what the kernel says of its mounts.
"""

from __future__ import annotations

from pathlib import Path

_NETWORK_TYPES = {"nfs", "nfs4", "lustre", "ceph", "gpfs", "beegfs", "glusterfs", "cifs", "smb3", "9p", "afs"}


def is_shared_mount(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Is `directory` on a network file system, or one in user space (FUSE: MooseFS, 3FS ...)?

    False where `mounts` cannot be read.
    """
    kind = mount_type(directory, mounts)
    return kind in _NETWORK_TYPES or kind.partition(".")[0] == "fuse"


def mount_type(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The file system that `directory` is on, as the kernel calls it; empty where `mounts` cannot be read."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    target, longest, kind = directory.absolute().resolve(), -1, ""
    for line in lines:
        fields, _, described = line.partition(" - ")
        mount_point = Path(_unescaped(fields.split(" ")[4]))
        if target.is_relative_to(mount_point) and len(mount_point.parts) >= longest:
            longest, kind = len(mount_point.parts), described.split(" ")[0]
    return kind


def _unescaped(text: str) -> str:
    """The kernel writes blanks and backslashes as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
