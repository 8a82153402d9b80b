"""Whether the kernel lets this process use io_uring. The store reads with threads and does not need it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from kvstore.probes.finding import Finding, Verdict

_IO_URING_SETUP = 425
_PARAMS_BYTES = 120
"""struct io_uring_params."""


def probe_io_uring() -> Sequence[Finding]:
    """Make a ring of one entry and close it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(_PARAMS_BYTES))
    if fd >= 0:
        os.close(fd)
        return [Finding("io_uring", Verdict.OK, "the kernel offers it")]
    code = ctypes.get_errno()
    reason = "this kernel has none" if code == errno.ENOSYS else os.strerror(code)
    told = f"not to be had ({reason}); kvstore=ssd reads with threads and needs none"
    return [Finding("io_uring", Verdict.OK, told)]
