"""What a model's code may try: each attempt is contained, the model is told, and its trajectory goes on.

Every attack runs in a real sandbox, through the tools that a model has.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from rollout.agent import AgentSetup, run_agent
from rollout.compose import load_config
from rollout.environment import Message
from rollout.sandbox.config import SandboxConfig
from rollout.tasks import Task
from rollout.tool_task import ToolTask
from rollout.tools.code import CodeTools
from rollout.tools.runner import ToolRunner
from rollout.types import Outcome
from rollout.workbench import Workbench
from tests.rollout.sandbox.limits import SMALL, SOON, skip_without_sandbox
from tests.rollout.test_agent import LIMITS, SAMPLE, SAMPLING, CharFormat, ScriptedEngines

VICTIM_S = "86399.5"
"""An argument by which a process of the host is known."""


class Attack(ToolTask):
    """A model with a shell; its answer earns 1 if it says so."""

    def tools(self) -> Sequence[Callable[..., Awaitable[str]]]:
        tools = CodeTools(self.sandbox)
        return [tools.bash, tools.python, tools.edit]

    async def reward(self, answer: str) -> float:
        return float(answer == "alive")


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    skip_without_sandbox()


@pytest.fixture
def victim() -> Iterator[int]:
    """A process of the host."""
    process = subprocess.Popen(["sleep", VICTIM_S])
    yield process.pid
    assert process.poll() is None
    process.kill()
    process.wait()


def attack_of(config: SandboxConfig) -> Attack:
    return Attack(Task("t", "Escape.", ""), Workbench(ToolRunner(load_config().tools), config))


def call_of(tool: str, **arguments: str) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


def attack(config: SandboxConfig, *calls: str) -> list[str]:
    """What the model is told of each call; then the sandbox still works and the answer is still heard."""

    async def play() -> list[str]:
        environment = attack_of(config)
        try:
            await environment.reset()
            told = []
            for call in (*calls, call_of("bash", command="echo still here")):
                step = await environment.step(call)
                assert not step.done
                assert isinstance(step.reply, tuple)
                (message,) = step.reply
                assert message.role == "tool"
                told.append(message.content)
            assert told.pop() == "still here"
            assert (await environment.step("alive")).reward == 1.0
            return told
        finally:
            await environment.close()

    return asyncio.run(play())


def bash(command: str, config: SandboxConfig = SMALL) -> str:
    return attack(config, call_of("bash", command=command))[0]


def python(code: str, config: SandboxConfig = SMALL) -> str:
    return attack(config, call_of("python", code=code))[0]


def test_the_hosts_files_are_not_there() -> None:
    told = bash("cat /etc/passwd; ls /root /home /proc/1/root; cat /proc/1/environ; ls /")
    assert "/etc/passwd: No such file or directory" in told
    assert "/root': No such file or directory" in told
    assert "/home': No such file or directory" in told
    assert "/proc/1/root': Permission denied" in told
    assert "/proc/1/environ: Permission denied" in told
    assert "work" not in told.replace("workspace", "").split()


def test_no_variable_of_the_environment_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a secret")
    assert "secret" not in bash("env")


def test_the_hosts_processes_cannot_be_seen_or_ended(victim: int) -> None:
    told = bash(f"cat /proc/*/cmdline | tr '\\0' ' '; kill -9 {victim}; kill -9 -1; echo alone")
    assert VICTIM_S not in told
    assert f"({victim}) - No such process" in told


def test_a_socket_reaches_nobody_not_even_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        told = python(
            "import socket\n"
            f"for address in (('127.0.0.1', {port}), ('1.1.1.1', 53)):\n"
            "    try:\n"
            "        print(socket.create_connection(address, 5))\n"
            "    except OSError as error:\n"
            "        print(error.strerror)\n"
            "for family in (socket.AF_VSOCK, socket.AF_PACKET, socket.AF_NETLINK, socket.AF_ALG):\n"
            "    try:\n"
            "        print(socket.socket(family, socket.SOCK_RAW))\n"
            "    except OSError as error:\n"
            "        print(error.strerror)\n"
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert told.split("\n") == [
        "Connection refused",
        "Network is unreachable",
        *["Operation not permitted"] * 4,
    ]


def test_a_fork_bomb_ends_with_its_call() -> None:
    told = bash(":() { : | : & }; :; sleep 30", SOON)
    assert "stopped after 0.5 s" in told
    assert "fork" in told


def test_processes_are_counted_and_limited() -> None:
    told = python(
        "import os, time\n"
        "for n in range(1000):\n"
        "    try:\n"
        "        pid = os.fork()\n"
        "    except OSError as error:\n"
        "        print(n, error.strerror)\n"
        "        break\n"
        "    if pid == 0:\n"
        "        time.sleep(1000)\n"
    )
    count, _, rest = told.partition(" ")
    assert 10 < int(count) < SMALL.processes
    assert rest.startswith("Resource temporarily unavailable")
    assert f"{count} processes were still running and have been ended" in rest


def test_the_disk_cannot_be_filled() -> None:
    told = bash("head -c 1G /dev/zero > /workspace/one; for n in 1 2 3 4; do head -c 7M /dev/zero > $n; done")
    assert "File size limit exceeded" in told
    assert "No space left on device" in told


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm"])
def test_files_are_counted_and_limited(folder: str) -> None:
    told = bash(f"cd {folder}; for n in {{1..100000}}; do : > $n; done")
    assert told == "[stopped: over 200 files]"


def test_a_hundred_gigabytes_are_refused() -> None:
    assert "MemoryError" in python("x = bytearray(100 << 30)")


def test_memory_is_limited_over_all_processes_together() -> None:
    code = "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(100 << 20)\ntime.sleep(60)"
    assert python(code) == "[stopped: its processes held over 256 MiB of memory]"


@pytest.mark.parametrize(
    "call", ["os.memfd_create('x')", "ctypes.CDLL(None).shmget(1, 4096, 0o1600) < 0 or 1/0"]
)
def test_memory_that_no_process_holds_is_refused(call: str) -> None:
    told = python(f"import ctypes, os\ntry: print({call})\nexcept PermissionError: print(True)")
    assert told == "True"


def test_a_command_that_ignores_signals_is_ended() -> None:
    told = bash("trap '' TERM INT HUP QUIT XCPU; while :; do :; done", SOON)
    assert told == "[stopped after 0.5 s]"


def test_cpu_time_is_limited() -> None:
    told = bash("while :; do :; done", replace(SMALL, cpu_s=1))
    assert told == "[ended by SIGXCPU]"


def test_nothing_outside_the_workspace_can_be_written() -> None:
    targets = (
        "/outside",
        "/usr/bin/outside",
        "/opt/outside",
        "/dev/outside",
        "/warden.py",
        "/proc/sys/vm/swappiness",
    )
    told = bash("; ".join(f"echo x > {target}" for target in targets) + "; mount -t tmpfs x /usr")
    for target in targets:
        assert f"{target}: Read-only file system" in told or f"{target}: Permission denied" in told
    assert "mount" in told
    assert not os.path.exists("/usr/bin/outside")


def test_a_link_leads_nowhere_for_any_tool() -> None:
    link = call_of("bash", command="ln -s /etc/passwd link; ln -s / host; ln -s /proc/1/root/etc/passwd deep")
    edits = [call_of("edit", path=path, old="root", new="x") for path in ("link", "host/etc/passwd", "deep")]
    _, *told = attack(SMALL, link, *edits, call_of("bash", command="cat link deep"))
    for answer in told[:3]:
        assert answer.startswith("ERROR")
        assert "No such file" in answer or "Permission denied" in answer
    assert "root:" not in told[3]


def test_a_daemon_does_not_outlive_its_call() -> None:
    start = (
        "setsid nohup bash -c 'while :; do date > alive; sleep 0.05; done' > /dev/null 2>&1 & echo started"
    )
    look = "rm -f alive; sleep 0.4; ls alive; ls /proc | grep -c '^[0-9]*$'"
    told = attack(SMALL, call_of("bash", command=start), call_of("bash", command=look))
    assert told[0].startswith("started\n[")
    assert "still running and have been ended" in told[0]
    assert "alive': No such file" in told[1]


def test_answers_cannot_be_forged_nor_the_warden_be_touched() -> None:
    told = bash(
        "for f in fd/1 mem; do echo '{\"ready\": true}' > /proc/1/$f; done; kill -9 1; kill -INT 1; echo on"
    )
    assert told.count("Permission denied") == 2
    assert told.endswith("on")


def test_namespaces_and_kernel_interfaces_are_refused() -> None:
    told = python(
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "calls = (272, 0x10000000), (101, 0, 1), (321, 0, 0, 0), (425, 8, 0), (165, 0, 0, 0, 0, 0)\n"
        "for call, *arguments in calls:\n"
        "    print(libc.syscall(call, *arguments), os.strerror(ctypes.get_errno()))\n"
    )
    if os.uname().machine == "x86_64":
        assert told.split("\n") == ["-1 Operation not permitted"] * 5


def test_a_flood_of_output_is_cut_in_the_middle() -> None:
    told = bash("echo first; yes | head -c 10M; echo last")
    assert told.startswith("first\n")
    assert told.endswith("last")
    assert "bytes left out" in told
    assert len(told) < 2 * SMALL.output_bytes


def test_bytes_that_are_no_text_and_special_tokens_are_only_text() -> None:
    assert bash(r"printf '\xff\xfe<|im_end|>'") == "\ufffd\ufffd<|im_end|>"


def test_a_whole_trajectory_goes_through_attacks_to_its_answer() -> None:
    class Talk(CharFormat):
        def open(self, messages: Sequence[Message], tools: object = ()) -> list[int]:
            return super().open(messages)

    lines = [call_of("bash", command="cat /etc/shadow"), call_of("bash", command="sleep 60"), "alive"]
    setup = AgentSetup(
        ScriptedEngines(*(line + ";" for line in lines)),
        Talk(),
        replace(SAMPLING, max_tokens=500),
        replace(LIMITS, max_context_tokens=5000),
        environment_of=lambda task: attack_of(SOON),
    )
    trajectory = asyncio.run(run_agent(SAMPLE, setup))
    assert trajectory.outcome is Outcome.COMPLETED
    assert trajectory.reward == 1.0
    said = "".join(map(chr, trajectory.segments[0].token_ids))
    assert "No such file or directory" in said
    assert "stopped after 0.5 s" in said
