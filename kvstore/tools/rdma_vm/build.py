"""Makes the image from Debian's packages: a kernel with soft-RoCE, and RDMA's user space with pyverbs.

Decides which packages and kernel modules the guest needs. Nothing is installed: packages are unpacked into
the cache. Debian's pyverbs depends on a package that would upgrade the system's udev, and PyPI's is built
against a libibverbs that Debian 12 does not have.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from kvstore.tools.rdma_vm.apt import Apt
from kvstore.tools.rdma_vm.cpio import archive, folder, program
from kvstore.tools.rdma_vm.errors import NoGuest
from kvstore.tools.rdma_vm.image import EMULATOR, Image, cache_folder, recipe
from kvstore.tools.rdma_vm.kernel import KernelModules, bootable

ARCHITECTURE = "amd64"
KERNEL = "linux-image-amd64"
EMULATOR_PACKAGE = "qemu-system-x86"
TOOLS = ("iproute2",)
"""What the guest takes from the host's file system, where the host has it."""
RDMA_PACKAGES = (
    "busybox-static",
    "ibverbs-providers",
    "ibverbs-utils",
    "libibverbs1",
    "libnl-3-200",
    "libnl-route-3-200",
    "librdmacm1",
    "python3-pyverbs",
)
"""Always of one version, so never the host's."""
MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "overlay"),
    *("crc32_generic", "rdma_rxe", "rdma_ucm", "veth", "dummy"),  # rdma_rxe asks for its checksum by name
    *("sch_htb", "sch_ets", "sch_prio", "sch_tbf", "sch_netem", "sch_ingress"),
    *("cls_u32", "cls_flower", "cls_matchall", "act_police", "act_mirred"),
)
FOLDERS = ("bin", "proc", "sys", "dev", "host", "layer", "memory", "root", "modules")


def build(say: Callable[[str], None]) -> Image:
    """The image of today's sources, made if it is not there. Raises NoGuest; nothing is then left behind.

    Two that build at the same time each make one, and the second takes the first's.
    """
    cache, name = cache_folder(), recipe()
    image = Image(cache / name)
    try:
        if not image.folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=cache, prefix="building-") as work:
                made = _make(Path(work), say)
                if not image.folder.is_dir():
                    made.rename(image.folder)
    except OSError as error:
        raise NoGuest(f"{cache} cannot be written: {error}") from error
    image.emulator()  # it may have been removed since
    return image


def _make(work: Path, say: Callable[[str], None]) -> Path:
    """An image in a folder of `work`."""
    say("reading the lists of this machine's package sources")
    apt = Apt(work / "apt")
    if apt.architecture() != ARCHITECTURE:
        raise NoGuest(f"needs {ARCHITECTURE}: the guest runs this machine's own programs")
    kernel = apt.newest(KERNEL)
    emulator = apt.missing(EMULATOR_PACKAGE) if shutil.which(EMULATOR) is None else []
    layer = [*RDMA_PACKAGES, *(name for name in apt.missing(*TOOLS) if name not in RDMA_PACKAGES)]
    say(f"fetching {kernel} and {len(layer) + len(emulator)} packages, 100 MB; nothing is installed")
    image = work / "image"
    for name in ("layer", "host"):
        (image / name).mkdir(parents=True)
    apt.unpack([kernel], work / "kernel")
    apt.unpack(layer, image / "layer")
    apt.unpack(emulator, image / "host")
    say("putting the guest together")
    _merge_into_usr(image / "layer")
    _add_pyverbs_path(image / "layer")
    (vmlinuz,) = (work / "kernel" / "boot").glob("vmlinuz-*")
    (image / "vmlinux").write_bytes(bootable(vmlinuz.read_bytes()))
    busybox = (image / "layer" / "usr" / "bin" / "busybox").read_bytes()
    (image / "initramfs").write_bytes(_initramfs(work / "kernel", busybox))
    return image


def _merge_into_usr(layer: Path) -> None:
    """Move top folders into usr, where a host's root has links: laid over them they would hide the host's."""
    for name in ("bin", "lib", "sbin"):
        if (layer / name).is_dir():
            shutil.copytree(layer / name, layer / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(layer / name)


def _add_pyverbs_path(layer: Path) -> None:
    """A folder that holds pyverbs alone, for an interpreter's path: beside it lie all of Debian's."""
    (layer / "opt" / "pyverbs").mkdir(parents=True)
    (layer / "opt" / "pyverbs" / "pyverbs").symlink_to("../../usr/lib/python3/dist-packages/pyverbs")


def _initramfs(kernel: Path, busybox: bytes) -> bytes:
    modules = KernelModules(kernel)
    order = modules.in_loading_order(MODULES)
    return archive(
        [
            *(folder(name) for name in FOLDERS),
            program("bin/busybox", busybox),
            program("init", (Path(__file__).parent / "init.sh").read_bytes()),
            program("modules.txt", "".join(f"{name}\n" for name in order).encode()),
            *(program(f"modules/{name}.ko", modules.read(name)) for name in order),
        ]
    )
