"""What the code of one trajectory may use: meaning and bounds, no values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engines.bounds import require_above, require_at_least


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """Limits hold for one sandbox, which a trajectory has to itself."""

    kind: Literal["bubblewrap", "unsafe"]
    """`bubblewrap`: Linux namespaces and a system call filter. `unsafe`: an ordinary process of this user in
    a temporary folder, with the limits but with the host's files, network and processes."""
    call_s: float
    """Longest one command may run."""
    cpu_s: int
    """Most CPU time of one process of a command, in seconds."""
    memory_bytes: int
    """Most address space of one process; but for `unsafe` also most memory resident in all of them."""
    processes: int
    """Most processes and threads at once. Not enforced by `unsafe`."""
    file_bytes: int
    """Most bytes of one file."""
    workspace_bytes: int
    """Most bytes of all files in /workspace, and as many in /tmp; they lie in memory. Not enforced by
    `unsafe`."""
    files: int
    """Most files and folders in each of them. Not enforced by `unsafe`."""
    output_bytes: int
    """Most output of one command that is kept; the middle of a longer one is left out."""

    def __post_init__(self) -> None:
        require_above(self, 0, "call_s")
        require_at_least(self, 1, "cpu_s", "file_bytes", "output_bytes")
        require_at_least(self, 64 << 20, "memory_bytes")
        require_at_least(self, 1 << 20, "workspace_bytes")
        require_at_least(self, 8, "processes", "files")
