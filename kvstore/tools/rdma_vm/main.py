"""The command line of the guest: `scripts/rdma_vm setup` and `scripts/rdma_vm run -- COMMAND...`.

Exit codes of run: the command's; 124 if it did not end in time, 125 if there is no guest (also of setup).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kvstore.tools.rdma_vm.build import build
from kvstore.tools.rdma_vm.errors import NoGuest
from kvstore.tools.rdma_vm.guest import GuestCommand, GuestTimeout, inherited_environment, run

EXIT_TIMEOUT = 124
EXIT_NO_GUEST = 125
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
ABOUT = """\
Run commands in a small emulated machine whose Linux has soft-RoCE: RDMA verbs without RDMA hardware.
Needs amd64 Debian's apt; neither KVM nor root, and it installs nothing on the system.

  scripts/rdma_vm setup                              make it, once: 100 MB of Debian packages into the cache
  scripts/rdma_vm run -- ibv_devinfo                 its devices: rxe0 (10.9.0.1) and rxe1 (10.9.0.2)
  scripts/rdma_vm run -- .venv/bin/python -m pytest -m rdma tests/kvstore

A command sees this machine's files at their own paths. What it writes is gone with the guest, except below
--share, and of this shell's variables it gets a few (--env for others). It has no network. Do not change
files that it uses while it runs. pyverbs is on Python's path, for the one version of Python that Debian
compiles it for. The cache is $RDMA_VM_CACHE, or in ~/.cache.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the process's exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except NoGuest as reason:
        _say(f"cannot run here: {reason}")
        return EXIT_NO_GUEST
    except GuestTimeout:
        _say(f"stopped: the command did not end within {options.timeout:g} s (--timeout)")
        return EXIT_TIMEOUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="rdma_vm", description=ABOUT, formatter_class=formatter)
    commands = parser.add_subparsers(required=True, metavar="setup|run")
    setup = commands.add_parser("setup", help="make the guest, if it is not there")
    setup.set_defaults(run=_setup)
    runs = commands.add_parser("run", help="run a command in a guest of its own")
    runs.set_defaults(run=_run)
    runs.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds, booting included")
    runs.add_argument("--memory", type=int, default=3072, metavar="MIB", help="the guest's memory")
    runs.add_argument("--steady", action="store_true", help="a busy host slows its clock, not its rates")
    runs.add_argument("--share", type=Path, metavar="DIR", help="what the command writes below DIR is kept")
    runs.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="also give it this")
    runs.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    return parser


def _setup(options: argparse.Namespace) -> int:
    image = build(_say)
    _say(f"ready: {image.folder}, pyverbs for Python {image.python_version()}")
    return 0


def _run(options: argparse.Namespace) -> int:
    share: Path | None = options.share
    if share is not None:
        share = share.absolute()
        share.mkdir(parents=True, exist_ok=True)
    command = GuestCommand(
        options.command,
        Path.cwd(),
        inherited_environment(options.env),
        options.timeout,
        options.memory,
        steady=options.steady,
        share=share,
    )
    return run(build(_say), command, sys.stdout.buffer, sys.stderr.buffer)


def _say(line: str) -> None:
    print(f"rdma_vm: {line}", file=sys.stderr, flush=True)  # noqa: T201


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(EXIT_TERMINATED)
