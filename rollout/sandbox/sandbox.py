"""One sandbox: a workspace that a trajectory has to itself, and the commands run in it.

It is started by its first command, keeps its files between commands, and takes everything with it when it
is closed or when this process dies. Commands run one at a time; each ends within its limits and with all
that it started.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rollout.environment import ToolError
from rollout.sandbox import seccomp
from rollout.sandbox.bubblewrap import FOLDERS, NOBODY, SandboxUnavailable, command, environment
from rollout.sandbox.config import SandboxConfig

START_DEADLINE_S = 30.0
ANSWER_SLACK_S = 10.0
"""How much longer than its command may run the sandbox may take to answer."""
_END_DEADLINE_S = 2.0
_WARDEN = Path(__file__).with_name("warden.py")


class SandboxBroken(ToolError):
    """The sandbox itself ended or did not answer; its files are gone."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    output: str
    """What it wrote to its output and its error output, in order."""
    exit_code: int
    """Below zero: the signal that ended it."""
    stopped: str | None
    """The limit it was stopped at; None if it ended by itself."""
    left: int = 0
    """Processes that were ended beside its first one; `unsafe` ends those of its group and does not count."""


class Sandbox:
    """Belongs to one event loop."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._one_at_a_time = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._folder: str | None = None
        self._closed = False

    async def run(self, argv: Sequence[str], stdin: str = "") -> Ran:
        """Run a command in the workspace. Raises SandboxBroken, or SandboxUnavailable at the first one.

        A call that is cancelled takes the sandbox with it.
        """
        async with self._one_at_a_time:
            try:
                return await self._run({"argv": list(argv), "stdin": stdin, "id": secrets.token_hex(16)})
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """End its processes and delete its files. Idempotent."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            await self._end(process, politely=not self._one_at_a_time.locked())
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _end(self, process: asyncio.subprocess.Process, *, politely: bool) -> None:
        """Politely, bubblewrap reaps what it started. While a command runs, or if that fails, it dies."""
        assert process.stdin is not None
        process.stdin.close()
        if politely:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_DEADLINE_S):
                    await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _run(self, request: dict[str, Any]) -> Ran:
        if self._closed:
            raise SandboxBroken("the sandbox of this trajectory has ended, and its files with it")
        if self._process is None:
            await self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            async with asyncio.timeout(self._config.call_s + ANSWER_SLACK_S):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                answer = await self._answer(process)
        except TimeoutError:
            raise SandboxBroken("the sandbox did not end its command in time") from None
        except OSError as error:
            raise SandboxBroken(f"the sandbox has ended: {error}") from None
        if answer.pop("id", None) != request["id"]:
            raise SandboxBroken("the sandbox gave an answer that is not its own")
        return Ran(**answer)

    async def _start(self) -> None:
        limits = json.dumps({**asdict(self._config), "folders": FOLDERS})
        most = 16 * self._config.output_bytes + 65536  # a line of JSON, every character of it escaped
        with _launch(self._config) as launch:
            self._folder = launch.folder
            self._process = await asyncio.create_subprocess_exec(
                *launch.argv,
                limits,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=most,
                **launch.options,
            )
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                await self._answer(self._process)
        except (SandboxBroken, TimeoutError) as error:
            raise SandboxUnavailable(
                str(error) or f"bubblewrap did not start in {START_DEADLINE_S:g} s"
            ) from None

    async def _answer(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = await process.stdout.readline()
            if line:
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
        except ValueError:  # not JSON, or no end of line within the limit
            raise SandboxBroken("the sandbox gave an answer that is not its own") from None
        said = (await process.stderr.read(4096)).decode(errors="replace").strip()
        raise SandboxBroken(said.partition("\n")[0] or "the sandbox has ended")


def check_sandbox(config: SandboxConfig) -> None:
    """Raise SandboxUnavailable with one line unless a sandbox can be started here."""
    limits = json.dumps({**asdict(config), "folders": FOLDERS})
    with _launch(config) as launch:
        try:
            tried = subprocess.run(
                [*launch.argv, limits],
                input=b"",
                capture_output=True,
                timeout=START_DEADLINE_S,
                **launch.options,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxUnavailable(str(error)) from None
        finally:
            if launch.folder is not None:
                shutil.rmtree(launch.folder, ignore_errors=True)
    if tried.returncode != 0:
        reason = tried.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise SandboxUnavailable(reason or f"it ended with exit code {tried.returncode}")


@dataclass(frozen=True, slots=True)
class _Launch:
    argv: list[str]
    """The warden's command line, but for its limits."""
    options: dict[str, Any]
    """Of subprocess.Popen."""
    folder: str | None
    """The workspace, where it is a folder of the host."""


@contextmanager
def _launch(config: SandboxConfig) -> Iterator[_Launch]:
    """What starts a warden; what it needs open is open inside the block."""
    if config.kind == "unsafe":
        folder = tempfile.mkdtemp(prefix="dualpath-workspace-")
        argv = [sys.executable, "-I", "-S", str(_WARDEN)]
        yield _Launch(
            argv, {"cwd": folder, "env": environment(folder) | {"PATH": os.environ["PATH"]}}, folder
        )
        return
    filter_program = seccomp.program()
    if filter_program is None:
        raise SandboxUnavailable("its system call filter knows x86_64 and aarch64 only")
    descriptors = [_readable(filter_program), _readable(_WARDEN.read_bytes())]
    try:
        options: dict[str, Any] = {"pass_fds": descriptors, "env": {}, "cwd": "/"}
        if os.geteuid() == 0:
            options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        yield _Launch(command(config, *descriptors), options, None)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _readable(content: bytes) -> int:
    """A descriptor that gives `content`."""
    descriptor = os.memfd_create("sandbox")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def signal_name(exit_code: int) -> str:
    """What an exit code below zero stands for."""
    with suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"
