"""The command line that puts a process into namespaces of its own: bubblewrap's.

Inside there is /usr, read-only, a Python, and in memory /workspace, /tmp and /dev/shm; no network but a
loopback of its own, no process of the host, no capability, no further user namespace, and a system call
filter. As root it is started as the user `nobody`, so that nothing inside is root anywhere and the limit on
processes holds.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

from rollout.errors import UserError
from rollout.sandbox.config import SandboxConfig

FOLDERS = ("/workspace", "/tmp", "/dev/shm")
"""What a command can write to."""
NOBODY = 65534
_TOOLS = "/opt/tools"
_SYSTEM_PYTHON = "/usr/bin/python3"
_HOST_FILES = ("/etc/alternatives", "/etc/ld.so.cache")
"""Links and paths that programs in /usr are found by; nothing that tells of the host."""


class SandboxUnavailable(UserError):
    """This machine cannot isolate; the message says why and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no sandbox for tools that run code: {reason}; "
            "or set sandbox=unsafe, and their code can do all that you can"
        )


def command(config: SandboxConfig, seccomp_fd: int, warden_fd: int) -> list[str]:
    """Runs what follows it as process 1 of a new sandbox, /warden.py being what `warden_fd` holds."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxUnavailable("bubblewrap 0.8 or later is missing (apt install bubblewrap)")
    python, prefix = interpreter()
    size = ("--size", str(config.workspace_bytes))
    options = [program, "--unshare-user", "--unshare-all", "--disable-userns", "--cap-drop", "ALL"]
    options += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    options += ["--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
    for name, value in environment("/workspace").items():
        options += ["--setenv", name, value]
    options += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64"):
        options += ["--symlink", f"usr/{name}", f"/{name}"]
    for path in _HOST_FILES:
        options += ["--ro-bind-try", path, path]
    if not prefix.is_relative_to("/usr"):
        options += ["--ro-bind", str(prefix), str(prefix)]
    for name in ("python", "python3"):
        options += ["--symlink", python, f"{_TOOLS}/{name}"]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for folder in FOLDERS:
        options += [*size, "--tmpfs", folder]
    options += ["--file", str(warden_fd), "/warden.py", "--remount-ro", "/dev", "--remount-ro", "/"]
    return [*options, "--seccomp", str(seccomp_fd), "--chdir", "/workspace", python, "-I", "-S", "/warden.py"]


def environment(home: str) -> dict[str, str]:
    """All the environment variables a command sees."""
    return {
        "PATH": f"{_TOOLS}:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def interpreter() -> tuple[str, Path]:
    """The Python of a sandbox and its folder: ours, or the system's where `nobody` may not read ours."""
    ours = Path(sys.executable).resolve(), Path(sys.base_prefix).resolve()
    if os.geteuid() != 0 or all(_open_to_all(path) for path in ours):
        return str(ours[0]), ours[1]
    if not os.access(_SYSTEM_PYTHON, os.X_OK):
        raise SandboxUnavailable(
            f"as root it needs a Python that other users may run; {ours[0]} is none, "
            f"and there is no {_SYSTEM_PYTHON}"
        )
    return _SYSTEM_PYTHON, Path("/usr")


def _open_to_all(path: Path) -> bool:
    """Whether every user can reach and execute it."""
    return all(step.stat().st_mode & stat.S_IXOTH for step in (path, *path.parents))
