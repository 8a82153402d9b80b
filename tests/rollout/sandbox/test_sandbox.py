"""A sandbox from outside: what it keeps, what it takes with it, and when it refuses to start."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rollout.sandbox import seccomp
from rollout.sandbox.config import SandboxConfig
from rollout.sandbox.sandbox import (
    Ran,
    Sandbox,
    SandboxBroken,
    SandboxUnavailable,
    check_sandbox,
)
from tests.rollout.sandbox.limits import SMALL, UNSAFE, skip_without_sandbox

DEADLINE_S = 30.0


@pytest.fixture(params=[SMALL, UNSAFE], ids=["bubblewrap", "unsafe"])
def config(request: pytest.FixtureRequest) -> SandboxConfig:
    """Each kind of sandbox."""
    found: SandboxConfig = request.param
    if found.kind == "bubblewrap":
        skip_without_sandbox()
    return found


def within(config: SandboxConfig, act: Callable[[Sandbox], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        sandbox = Sandbox(config)
        try:
            await act(sandbox)
        finally:
            await sandbox.close()

    asyncio.run(play())


def running(argument: str) -> bool:
    """Whether a process with this argument runs on the host, in whatever sandbox."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_files_stay_between_commands_and_processes_do_not(config: SandboxConfig) -> None:
    async def act(sandbox: Sandbox) -> None:
        ran = await sandbox.run(["bash", "-c", "cat > note; sleep 86399.1 &"], "remember\n")
        assert (ran.output, ran.exit_code, ran.left) == ("", 0, config.kind == "bubblewrap")
        wait_until(lambda: not running("86399.1"))
        assert await sandbox.run(["cat", "note"]) == Ran("remember\n", 0, None)

    within(config, act)


def test_how_a_command_ended_is_told(config: SandboxConfig) -> None:
    async def act(sandbox: Sandbox) -> None:
        assert await sandbox.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Ran("out\nerr\n", 3, None)
        assert (await sandbox.run(["sh", "-c", "kill -SEGV $$"])).exit_code == -signal.SIGSEGV
        assert await sandbox.run(["no-such-program"]) == Ran(
            "no-such-program: No such file or directory\n", 127, None
        )

    within(config, act)


def test_a_long_input_is_read_whole_and_one_that_nobody_reads_hurts_nobody(config: SandboxConfig) -> None:
    async def act(sandbox: Sandbox) -> None:
        assert (await sandbox.run(["wc", "-c"], "x" * 1_000_000)).output.strip() == "1000000"
        assert (await sandbox.run(["true"], "x" * 1_000_000)).exit_code == 0

    within(config, act)


def test_every_sandbox_has_a_workspace_of_its_own(config: SandboxConfig) -> None:
    async def act(sandbox: Sandbox) -> None:
        other = Sandbox(config)
        await asyncio.gather(
            *(each.run(["sh", "-c", f"echo {n} > mine"]) for n, each in enumerate((sandbox, other)))
        )
        assert [(await each.run(["cat", "mine"])).output for each in (sandbox, other)] == ["0\n", "1\n"]
        await other.close()

    within(config, act)


def test_commands_asked_for_together_run_one_after_another(config: SandboxConfig) -> None:
    async def act(sandbox: Sandbox) -> None:
        add = ["sh", "-c", "n=$(cat n 2>/dev/null || echo 0); sleep 0.01; echo $((n+1)) > n"]
        await asyncio.gather(*(sandbox.run(add) for _ in range(5)))
        assert (await sandbox.run(["cat", "n"])).output == "5\n"

    within(config, act)


def test_a_cancelled_command_takes_the_sandbox_with_it(config: SandboxConfig) -> None:
    async def act(sandbox: Sandbox) -> None:
        task = asyncio.create_task(sandbox.run(["sleep", "86399.2"]))
        await asyncio.to_thread(wait_until, lambda: running("86399.2"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until, lambda: not running("86399.2"))
        with pytest.raises(SandboxBroken, match="has ended"):
            await sandbox.run(["true"])

    if config.kind == "unsafe":
        pytest.skip("only a namespace of processes can be taken away whole")
    within(config, act)


def test_a_worker_that_is_killed_leaves_nothing_behind() -> None:
    skip_without_sandbox()
    program = (
        "import asyncio\n"
        "from rollout.sandbox.sandbox import Sandbox\n"
        "from tests.rollout.sandbox.limits import SMALL\n"
        "asyncio.run(Sandbox(SMALL).run(['sleep', '86399.3']))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: running("86399.3"))
    worker.kill()
    worker.wait()
    wait_until(lambda: not running("86399.3"))


def test_an_unsafe_workspace_is_a_folder_that_goes_when_it_is_closed() -> None:
    folders: list[str] = []

    async def act(sandbox: Sandbox) -> None:
        folders.append((await sandbox.run(["pwd"])).output.strip())
        assert (await sandbox.run(["ls", "-d", folders[0]])).exit_code == 0

    within(UNSAFE, act)
    assert not os.path.exists(folders[0])


def test_a_machine_without_bubblewrap_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"^[^\n]*apt install bubblewrap[^\n]*sandbox=unsafe[^\n]*$"):
        check_sandbox(SMALL)
    with pytest.raises(SandboxUnavailable, match="apt install bubblewrap"):
        within(SMALL, lambda sandbox: sandbox.run(["true"]))  # type: ignore[arg-type, return-value]


def test_a_machine_whose_kernel_refuses_namespaces_is_refused_in_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "bwrap"
    script.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    script.chmod(0o755)
    for folder in tmp_path.parents[: tmp_path.parents.index(Path(tempfile.gettempdir()))]:
        folder.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
        check_sandbox(SMALL)
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
        within(SMALL, lambda sandbox: sandbox.run(["true"]))  # type: ignore[arg-type, return-value]


def test_a_machine_whose_system_calls_are_not_known_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None
    for machine in ("x86_64", "aarch64"):
        program = seccomp.program(machine)
        assert program is not None
        assert len(program) % 8 == 0


def test_a_sandbox_belongs_to_the_event_loop_of_any_thread(config: SandboxConfig) -> None:
    said: list[str] = []

    async def act(sandbox: Sandbox) -> None:
        said.append((await sandbox.run(["echo", "here"])).output)

    thread = threading.Thread(target=within, args=(config, act))
    thread.start()
    thread.join(DEADLINE_S)
    assert said == ["here\n"]
