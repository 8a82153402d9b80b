"""What the guest boots from: a folder in the user's cache, named by the sources that made it.

It holds `vmlinux`, `initramfs`, `layer/` (RDMA's user space, laid over the host's files in the guest) and
`host/` (an emulator, where the system has none). An image is complete or not there. One made by other
sources is another image, so nothing here is ever out of date; only Debian's newest kernel may be newer.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from kvstore.tools.rdma_vm.errors import NoGuest

EMULATOR = "qemu-system-x86_64"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
SOURCES = ("apt.py", "build.py", "cpio.py", "init.sh", "kernel.py")
CACHE_VARIABLE = "RDMA_VM_CACHE"


def cache_folder() -> Path:
    """Where images are kept: $RDMA_VM_CACHE, or a folder of ours in the user's cache (XDG)."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dualpath-rollout" / "rdma_vm"


def recipe() -> str:
    """A short name of everything that decides what an image holds."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in SOURCES)).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Image:
    """A complete image."""

    folder: Path

    @classmethod
    def find(cls) -> Image:
        """The one of today's sources. Raises NoGuest if it was not made yet, or if its emulator is gone."""
        folder = cache_folder() / recipe()
        if not folder.is_dir():
            raise NoGuest(f"there is no guest yet ({folder}): scripts/rdma_vm setup")
        image = cls(folder)
        image.emulator()
        return image

    @property
    def layer(self) -> Path:
        return self.folder / "layer"

    def emulator(self) -> list[str]:
        """The command that emulates, and where it finds its firmware. Raises NoGuest."""
        ours = self.folder / "host" / "usr"
        if (ours / "bin" / EMULATOR).exists():
            firmware = [f"-L{ours}/share/{name}" for name in ("qemu", "seabios")]
            return [str(ours / "bin" / EMULATOR), *firmware]
        if (systems := shutil.which(EMULATOR)) is None:
            raise NoGuest(f"{EMULATOR} was removed since setup: rm -r {self.folder}; scripts/rdma_vm setup")
        return [systems]

    def emulator_environment(self) -> dict[str, str]:
        """For an emulator of our own: where its libraries are. The system's are looked for after them."""
        libraries = self.folder / "host" / LIBRARIES
        if not libraries.is_dir():
            return {}
        return {"LD_LIBRARY_PATH": str(libraries), "QEMU_MODULE_DIR": str(libraries / "qemu")}

    def python_version(self) -> str:
        """The minor version of Python that the guest's pyverbs is compiled for, for example `3.11`."""
        (compiled,) = (self.layer / "opt/pyverbs/pyverbs").glob("device.cpython-*.so")
        found = re.search(r"cpython-(\d)(\d+)-", compiled.name)
        assert found, compiled
        return ".".join(found.groups())
