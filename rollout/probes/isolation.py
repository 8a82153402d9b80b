"""What can keep a model's own code away from this host: the means a sandbox of tools is made of."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence

from kvstore.probes.finding import Finding, Verdict

_DEADLINE_S = 5.0
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1


def probe_isolation() -> Sequence[Finding]:
    """Bubblewrap, namespaces by themselves, and Landlock, each tried."""
    bubblewrap = _tried("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true")
    namespaces = _tried("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "true")
    landlock = _landlock()
    told = ", ".join(
        [
            f"bubblewrap {bubblewrap or 'works'}",
            f"user namespaces {'work' if namespaces is None else namespaces}",
            f"Landlock ABI {landlock}" if landlock else "no Landlock",
        ]
    )
    if bubblewrap is None:
        return [Finding("sandbox", Verdict.OK, told)]
    advice = (
        "apt-get install bubblewrap; tools that run a model's own code need it"
        if namespaces is None
        else "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces) "
        "and apt-get install bubblewrap; tools that run a model's own code need both"
    )
    return [Finding("sandbox", Verdict.WARN, told, advice)]


def _tried(program: str, *arguments: str) -> str | None:
    """None if it works; else why not, in a few words."""
    path = shutil.which(program)
    if path is None:
        return "is not installed"
    done = subprocess.run(
        [path, *arguments], capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"fails ({lines[-1].strip() if lines else f'exit code {done.returncode}'})"


def _landlock() -> int:
    """Its version here; 0 without."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)))
