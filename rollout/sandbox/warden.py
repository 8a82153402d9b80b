"""Process 1 of a sandbox: runs one command after another and lets none outlive its call.

It is started by a bare Python (`-I -S`) inside the sandbox and imports nothing of this project. Each line
of its input is a request, each line of its output the answer to one; both are JSON. Outside a sandbox
(`unsafe`), where it is not process 1, it ends only the process group of its command.

A request carries a random id, so a command that managed to write to our output could not forge an answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

TICK_MS = 20
"""How often a running command's memory and files are looked at."""
_PIECE_BYTES = 65536
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PR_SET_DUMPABLE = 4
_ALONE = os.getpid() == 1


class Output:
    """What a command wrote: its beginning and its end, `most` bytes in all."""

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._first = bytearray()
        self._last = bytearray()
        self._dropped = 0

    def add(self, piece: bytes) -> None:
        room = self._half - len(self._first)
        self._first += piece[:room]
        self._last += piece[room:]
        excess = len(self._last) - self._half
        if excess > 0:
            del self._last[:excess]
            self._dropped += excess

    def text(self) -> str:
        first, last = (bytes(part).decode("utf-8", "replace") for part in (self._first, self._last))
        gap = f"\n[{self._dropped} bytes left out]\n" if self._dropped else ""
        return first + gap + last


class Command:
    """One command under way."""

    def __init__(self, request: dict[str, Any], limits: dict[str, Any]) -> None:
        self._limits = limits
        self._stdin = request["stdin"].encode()
        self._ends_s = time.monotonic() + limits["call_s"]
        self._output = Output(limits["output_bytes"])
        self._status: int | None = None
        self._next_look_s = 0.0
        # Who is over already may still run what makes no more, such as rm.
        self._most_files = {
            path: max(limits["files"], _num_files(path)) for path in (limits["folders"] if _ALONE else ())
        }
        self._pid, self._in, self._out = _start(request["argv"], limits["cpu_s"])

    def finish(self) -> dict[str, Any]:
        """Wait for the command's end, or bring it about; nothing that it started is left."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        poll.register(self._in, select.POLLOUT)
        ended = os.pidfd_open(self._pid)
        poll.register(ended, select.POLLIN)
        stopped = None
        while self._status is None and stopped is None:
            for descriptor, _ in poll.poll(TICK_MS):
                if descriptor != ended:
                    self._move(poll, descriptor)
            self._reap()
            if self._status is None:
                stopped = self._overrun()
        left = _end_all(self._pid, self._note) - (stopped is not None)
        self._drain()
        for descriptor in (ended, self._in, self._out):
            if descriptor >= 0:
                os.close(descriptor)
        return {
            "output": self._output.text(),
            "exit_code": os.waitstatus_to_exitcode(self._status or 0),
            "stopped": stopped,
            "left": left,
        }

    def _move(self, poll: select.poll, descriptor: int) -> None:
        if descriptor == self._out:
            piece = os.read(self._out, _PIECE_BYTES)
            self._output.add(piece)
            if not piece:
                poll.unregister(self._out)
            return
        try:
            self._stdin = (
                self._stdin[os.write(self._in, self._stdin[:_PIECE_BYTES]) :] if self._stdin else b""
            )
        except BlockingIOError:
            return
        except OSError:  # it does not listen
            self._stdin = b""
        if not self._stdin:
            poll.unregister(self._in)
            os.close(self._in)
            self._in = -1

    def _reap(self) -> None:
        """Take back whoever has ended; orphans come to process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._note(pid, status)

    def _note(self, pid: int, status: int) -> None:
        if pid == self._pid:
            self._status = status

    def _overrun(self) -> str | None:
        """The limit that the command is over, told as what happened."""
        now_s = time.monotonic()
        if now_s > self._ends_s:
            return f"stopped after {self._limits['call_s']:g} s"
        if not _ALONE or now_s < self._next_look_s:
            return None
        self._next_look_s = now_s + TICK_MS / 1000
        if _resident_bytes() > self._limits["memory_bytes"]:
            return f"stopped: its processes held over {self._limits['memory_bytes'] >> 20} MiB of memory"
        if any(_num_files(path) > most for path, most in self._most_files.items()):
            return f"stopped: over {self._limits['files']} files"
        return None

    def _drain(self) -> None:
        os.set_blocking(self._out, False)
        try:
            while piece := os.read(self._out, _PIECE_BYTES):
                self._output.add(piece)
        except BlockingIOError:  # unsafe only: somebody who left the process group holds the other end
            return


def _start(argv: list[str], cpu_s: int) -> tuple[int, int, int]:
    """Its process id, our end of its input, and our end of its output."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
            for descriptor, number in ((in_read, 0), (out_write, 1), (out_write, 2)):
                os.dup2(descriptor, number)
            for signal_number in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
                signal.signal(signal_number, signal.SIG_DFL)
            os.execvp(argv[0], argv)
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    os.close(in_read)
    os.close(out_write)
    os.set_blocking(in_write, False)
    return pid, in_write, out_read


def _end_all(pid: int, note: Callable[[int, int], None]) -> int:
    """Kill and reap what is left of a command; how many processes that were."""
    left = 0
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if _ALONE:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(pid, signal.SIGKILL)
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return left
        left += 1
        note(ended, status)


def _resident_bytes() -> int:
    """Of all processes but this one; what several share is counted for each."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm", "rb") as file:
                    pages += int(file.read().split()[1])
            except (OSError, IndexError):  # it has just ended
                continue
    return pages * _PAGE_BYTES


def _num_files(path: str) -> int:
    figures = os.statvfs(path)
    return figures.f_files - figures.f_ffree


def _limit_all(limits: dict[str, Any]) -> None:
    """Limits that this process shares with its commands."""
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", 128),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MSGQUEUE", 0),
    ):
        kind = getattr(resource, name, None)
        if kind is not None and (_ALONE or name != "RLIMIT_NPROC"):
            resource.setrlimit(kind, (value, value))


def main() -> None:
    limits = json.loads(sys.argv[1])
    _limit_all(limits)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _ALONE:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        # Our memory and descriptors are no business of the commands, which run as the same user.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _answer({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer = Command(request, limits).finish()
        except OSError as error:
            answer = {"output": "", "exit_code": 126, "stopped": f"not run: {error.strerror}", "left": 0}
        _answer({"id": request["id"], **answer})
    os._exit(0)  # nobody asks any more


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
