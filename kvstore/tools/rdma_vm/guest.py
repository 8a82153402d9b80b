"""One run of a command in a guest of its own: boots it, follows the command's output, ends the guest.

The command sees this machine's files at their own paths (a repository, its virtual environment), in a root
whose changes are gone with the guest; it may write into one shared folder. There is no network but the two
soft-RoCE devices. Output and exit code come over files in the run's folder, which the guest writes through:
once the exit code is there, all output is. Several guests may run at once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from kvstore.tools.rdma_vm.errors import NoGuest
from kvstore.tools.rdma_vm.image import Image

PYVERBS_PATH = "/opt/pyverbs"
POLL_S = 0.05
FAST = ("-accel", "tcg,thread=multi", "-smp", "2")
STEADY = ("-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=2")
"""One processor of 250 million instructions a second, by the guest's clock."""
CPU_MODEL = "Nehalem"
"""The newest that is emulated fast: a quarter of RDMA's rate is left where AVX is emulated too."""
KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off nokaslr nowatchdog"
NINE_P = "trans=virtio,version=9p2000.L,msize=512000"
INHERITED = ("CI", "HOME", "LANG", "OMP_NUM_THREADS", "PATH", "PYTHONPATH", "TERM", "VIRTUAL_ENV")
"""Variables that mean the same in the guest. OPENBLAS_CORETYPE names this machine's processor."""


def inherited_environment(others: Sequence[str] = ()) -> dict[str, str]:
    """This process's INHERITED variables and `others`: NAME of one that is set here, or NAME=VALUE."""
    named = {name: os.environ[name] for name in (*INHERITED, *others) if name in os.environ}
    given = dict(other.split("=", 1) for other in others if "=" in other)
    return named | given


class GuestTimeout(Exception):
    """The command did not end in time; the guest was stopped."""


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """What to run in a guest, and how."""

    command: Sequence[str]
    folder: Path
    """Where it starts."""
    environment: Mapping[str, str]
    """All that it is given, but for pyverbs on Python's path."""
    timeout_s: float
    """From now, booting included."""
    memory_mib: int
    steady: bool = False
    """Its clock counts its instructions: a busy host then slows its time and not its rates. Half as fast."""
    share: Path | None = None
    """The one folder whose files outlive the guest; at its own path there too."""


def run(image: Image, command: GuestCommand, out: BinaryIO, err: BinaryIO) -> int:
    """The command's exit code; what it printed went to `out` and `err` meanwhile.

    Raises GuestTimeout, or NoGuest if the guest ended before its command; whatever is raised, it is gone.
    """
    ends = time.monotonic() + command.timeout_s
    with TemporaryDirectory(prefix="rdma-vm-") as name:
        run_folder = Path(name)
        _prepare(run_folder, command)
        streams = [(run_folder / "stdout", out), (run_folder / "stderr", err)]
        with _followed(streams) as forward, _booted(image, command, run_folder) as emulator:
            while not (run_folder / "exit_code").exists() and emulator.poll() is None:
                forward()
                if time.monotonic() > ends:
                    raise GuestTimeout
                time.sleep(POLL_S)
        if (run_folder / "exit_code").exists():
            return int((run_folder / "exit_code").read_text())
        raise NoGuest(f"the guest ended before its command did; {_last_words(run_folder)}")


def _prepare(run_folder: Path, command: GuestCommand) -> None:
    shutil.copy(Path(__file__).parent / "start.sh", run_folder)
    (run_folder / "command.sh").write_text(_script(command))
    for name in ("stdout", "stderr", "console"):
        (run_folder / name).touch()


def _script(command: GuestCommand) -> str:
    """What the guest's shell runs."""
    path = ":".join(filter(None, [PYVERBS_PATH, command.environment.get("PYTHONPATH")]))
    environment = {**command.environment, "PYTHONPATH": path}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if command.share is not None:
        path = shlex.quote(str(command.share))
        lines += [f"mkdir -p {path}", f"mount -t 9p -o cache=none,{NINE_P} share {path}"]
    lines += [f"cd {shlex.quote(str(command.folder))}", f"exec {shlex.join(command.command)}"]
    return "set -e\n" + "".join(f"{line}\n" for line in lines)


@contextmanager
def _followed(streams: list[tuple[Path, BinaryIO]]) -> Iterator[Callable[[], None]]:
    """A function that passes on what the files have grown by; done once more at the end."""
    files = [(path.open("rb"), to) for path, to in streams]

    def forward() -> None:
        for file, to in files:
            if new := file.read():
                to.write(new)
                to.flush()

    try:
        yield forward
    finally:
        forward()
        for file, _ in files:
            file.close()


@contextmanager
def _booted(image: Image, command: GuestCommand, run_folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The emulator, killed at the end: there is nothing in it that is kept, and files of 9p are written."""
    shares = {"root": ("/", True), "layer": (str(image.layer), True), "run": (str(run_folder), False)}
    if command.share is not None:
        shares["share"] = (str(command.share), False)
    arguments = [
        # The kernel kills it when this process is gone, however that was.
        *("setpriv", "--pdeathsig", "KILL", *image.emulator()),
        *(STEADY if command.steady else FAST),
        *("-cpu", CPU_MODEL, "-machine", "q35"),
        *("-m", f"{command.memory_mib}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", f"file:{run_folder}/console", "-kernel", f"{image.folder}/vmlinux"),
        *("-initrd", f"{image.folder}/initramfs", "-append", KERNEL_ARGUMENTS),
    ]
    for tag, (path, read_only) in shares.items():
        arguments += ["-fsdev", _file_share(tag, path, read_only)]
        arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    with (run_folder / "emulator").open("wb") as said:
        emulator = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, **image.emulator_environment()},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
    try:
        yield emulator
    finally:
        emulator.kill()
        emulator.wait()


def _file_share(tag: str, path: str, read_only: bool) -> str:
    escaped = path.replace(",", ",,")
    readonly = ",readonly=on" if read_only else ""
    return f"local,id={tag},path={escaped},security_model=none,multidevs=remap{readonly}"


def _last_words(run_folder: Path) -> str:
    """The last lines of the guest's console and of the emulator."""
    said = ((run_folder / name).read_text(errors="replace").split("\n") for name in ("console", "emulator"))
    lines = [line.strip() for lines in said for line in lines if line.strip()]
    return "it said: " + " | ".join(lines[-5:]) if lines else "it said nothing"
