"""What a Debian kernel package holds, as the guest needs it: an ELF kernel, and modules in loading order.

Nothing is loaded here and no tool of the kernel's is needed: a module names what it depends on in itself.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

XZ_MAGIC = b"\xfd7zXZ\0"
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def bootable(vmlinuz: bytes) -> bytes:
    """The ELF kernel inside a `vmlinuz`, which boots without unpacking itself in emulation, 2 s sooner.

    Where the kernel was not packed with XZ it is the `vmlinuz` itself.
    """
    start = vmlinuz.find(XZ_MAGIC)
    if start < 0:
        return vmlinuz
    return lzma.LZMADecompressor().decompress(vmlinuz[start:])


class KernelModules:
    """All modules below `folder`, by name. A name has underscores where its file may have dashes."""

    def __init__(self, folder: Path) -> None:
        files = (*folder.rglob("*.ko"), *folder.rglob("*.ko.xz"))
        self._files = {file.name.partition(".")[0].replace("-", "_"): file for file in files}

    def read(self, name: str) -> bytes:
        """Its ELF file, unpacked."""
        content = self._files[name].read_bytes()
        return lzma.decompress(content) if self._files[name].suffix == ".xz" else content

    def in_loading_order(self, wanted: Iterable[str]) -> list[str]:
        """`wanted` and all they depend on, each after what it needs.

        A name without a file is taken to be built into the kernel.
        """
        order: list[str] = []

        def add(name: str) -> None:
            if name in order or name not in self._files:
                return
            for needed in self._needed_by(name):
                add(needed)
            order.append(name)

        for name in wanted:
            add(name)
        return order

    def _needed_by(self, name: str) -> list[str]:
        found = DEPENDS.search(self.read(name))
        names = found.group(1).decode().split(",") if found else []
        return [needed.replace("-", "_") for needed in names if needed]
