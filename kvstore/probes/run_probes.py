"""Runs probes, each in a process of its own that has a deadline.

A probe looks at what may be broken: a library that ends its process, a driver or a mount that never answers.
None of that may keep the others from being told, so each is a forked process, and what it does becomes a
Finding.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from kvstore.probes.finding import Finding, Probe, Verdict

_FORK = multiprocessing.get_context("fork")
_REPORT = "this check itself is at fault: please report it with what else is told here"


def run_probes(
    probes: Sequence[Probe], *, deadline_s: float, measuring_deadline_s: float
) -> dict[Probe, Sequence[Finding]]:
    """The findings of each, in the order of `probes`; at least one each.

    Those that measure run first and alone, for `measuring_deadline_s` each; then the others together.
    """
    found: dict[Probe, Sequence[Finding]] = dict.fromkeys(probes, ())
    for probe in probes:
        if probe.measures:
            found |= _run_together([probe], measuring_deadline_s)
    return found | _run_together([probe for probe in probes if not probe.measures], deadline_s)


def _run_together(probes: Sequence[Probe], deadline_s: float) -> dict[Probe, Sequence[Finding]]:
    end_s = time.monotonic() + deadline_s
    running = [_Running(probe) for probe in probes]
    try:
        return {each.probe: each.findings(end_s, deadline_s) for each in running}
    finally:
        for each in running:
            each.stop()


class _Running:
    """A probe at work."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._pipe, theirs = _FORK.Pipe(duplex=False)
        self._process: ForkProcess = _FORK.Process(target=_work, args=[probe, theirs], daemon=True)
        self._process.start()
        theirs.close()

    def findings(self, end_s: float, deadline_s: float) -> Sequence[Finding]:
        """What it found by `end_s` of time.monotonic()."""
        if not wait([self._pipe], max(0.0, end_s - time.monotonic())):
            return [self._late(deadline_s)]
        try:
            answer: Sequence[Finding] = self._pipe.recv()
            return answer
        except EOFError:
            self._process.join(1.0)
            code = self._process.exitcode
            how = f"signal {-code}" if code and code < 0 else f"exit code {code}"
            return [self._broken(f"the process that looked died ({how})", "a library or driver is broken")]

    def stop(self) -> None:
        """End it, with all that it started."""
        if self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(ProcessLookupError):  # it had not become the leader of its own group yet
                os.kill(self._process.pid, signal.SIGKILL)
        # One that hangs in the kernel goes when the kernel lets it; nobody waits for that.
        self._process.join(0.2)
        self._pipe.close()

    def _late(self, deadline_s: float) -> Finding:
        told, load, cores = (
            f"no answer within {deadline_s:g} s",
            os.getloadavg()[0],
            len(os.sched_getaffinity(0)),
        )
        if load > cores:
            advice = f"this machine is busy (load {load:.1f} on {cores} cores): look again when it is quiet"
            return Finding(self.probe.subject, Verdict.WARN, told, advice)
        return self._broken(told, "something it asks for hangs")

    def _broken(self, told: str, advice: str) -> Finding:
        return Finding(self.probe.subject, Verdict.FAIL, told, advice)


def _work(probe: Probe, pipe: Connection) -> None:
    """In the probe's process."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # libraries talk
        os.dup2(quiet, fd)
    try:
        findings: Sequence[Finding] = probe.look()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line
        said = " ".join(str(error).split())
        findings = [Finding(probe.subject, Verdict.FAIL, f"{type(error).__name__}: {said}", _REPORT)]
    pipe.send(findings)
