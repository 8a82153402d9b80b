"""The system calls a sandbox refuses: a classic BPF program for seccomp.

Namespaces already keep the network, files and processes of the host away. The filter closes what they leave
open: kernel memory that no limit counts, sockets that no network namespace holds (vsock, packet, netlink),
the memory of the sandbox's own process 1, and kernel interfaces that code under test never needs.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers below, and AUDIT_ARCH of linux/audit.h."""
_SOCKET = (41, 198)
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_REFUSED = {
    # memory that belongs to no process and no file system with a limit
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # large kernel interfaces
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "syslog": (103, 116),
}

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
"""Offsets in struct seccomp_data."""
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_X32_CALLS = 0x40000000
"""On x86_64, numbers from here on reach the same calls under other numbers."""


def program(machine: str = "") -> bytes | None:
    """The filter for this machine, an array of struct sock_filter; None where its calls are not known."""
    found = _ARCHITECTURES.get(machine or platform.machine())
    if found is None:
        return None
    column, architecture = found
    refused = [numbers[column] for numbers in _REFUSED.values()]
    # A jump's targets are counted from the instruction after it; the two returns stand at the end.
    to_refuse = len(refused) + len(_FAMILIES) + 4
    code = [_step(_LOAD, _ARCHITECTURE_AT), _step(_EQUAL, architecture, no=to_refuse)]
    code += [_step(_LOAD, _NUMBER_AT), _step(_AT_LEAST, _X32_CALLS, yes=to_refuse - 2)]
    for place, number in enumerate(refused):
        code.append(_step(_EQUAL, number, yes=to_refuse - 3 - place))
    code.append(_step(_EQUAL, _SOCKET[column], no=len(_FAMILIES) + 2))
    code.append(_step(_LOAD, _FIRST_ARGUMENT_AT))
    for place, family in enumerate(_FAMILIES):
        code.append(_step(_EQUAL, family, yes=len(_FAMILIES) - place))
    return b"".join([*code, _step(_RETURN, _REFUSE), _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip."""
    return struct.pack("=HBBI", code, yes, no, value)
