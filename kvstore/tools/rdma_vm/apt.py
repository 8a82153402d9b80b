"""Fetches Debian packages through apt and unpacks them, without installing anything.

Its package lists and archives lie in a folder of its own, so it needs no root, takes no lock of the system's
and leaves the system as it is. Where packages come from is what the machine's own apt is configured with.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvstore.tools.rdma_vm.errors import NoGuest

DEADLINE_S = 300.0
"""Of one command; all packages together are 100 MB."""


class Apt:
    """The machine's package sources, seen through lists of our own in `folder`."""

    def __init__(self, folder: Path) -> None:
        for program in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
            if shutil.which(program) is None:
                raise NoGuest(f"needs {program}: the guest is made of Debian's packages")
        self._folder = folder
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True)
        self._options = [
            f"-oDir::State::lists={folder}/lists",
            f"-oDir::Cache={folder}",
            f"-oDir::Cache::archives={folder}/archives",
            "-oAcquire::Languages=none",
            *(["-oAPT::Sandbox::User=root"] if os.geteuid() == 0 else []),  # apt's may not enter
        ]
        self._apt_get("update")

    def architecture(self) -> str:
        """As Debian names it, for example `amd64`."""
        return _output("dpkg", "--print-architecture").strip()

    def newest(self, package: str) -> str:
        """The package that the always-newest `package` (linux-image-amd64) depends on. Raises NoGuest."""
        try:
            shown = _output("apt-cache", *self._options, "depends", package)
        except NoGuest:  # it says no name
            shown = ""
        found = re.search(rf"Depends: ({package.removesuffix('amd64')}\S+)", shown)
        if not found:
            raise NoGuest(f"apt knows no package {package} here: is this Debian with main in its sources?")
        return found.group(1)

    def missing(self, *packages: str) -> list[str]:
        """Those of `packages`, and of what they depend on, that the system has not installed."""
        plan = self._apt_get("--simulate", "--no-install-recommends", "install", *packages)
        return re.findall(r"^Inst (\S+)", plan, re.MULTILINE)

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """Fetch `packages` and put their files below `into`. Raises NoGuest."""
        debs = self._folder / "debs"
        debs.mkdir()
        if packages:
            self._apt_get("download", *packages, cwd=debs)
        for deb in sorted(debs.iterdir()):
            _output("dpkg-deb", "--extract", str(deb), str(into))
        shutil.rmtree(debs)

    def _apt_get(self, *arguments: str, cwd: Path | None = None) -> str:
        return _output("apt-get", "--quiet", *self._options, *arguments, cwd=cwd)


def _output(*command: str, cwd: Path | None = None) -> str:
    """What `command` prints. Raises NoGuest with the last line it complained in."""
    env = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoGuest(f"{command[0]} did not end within {DEADLINE_S:g} s: is there a network?") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise NoGuest(f"{command[0]} failed ({done.returncode}) and said: {said}")
    return done.stdout
