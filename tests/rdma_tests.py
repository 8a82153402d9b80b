"""Tests marked `rdma` need RDMA devices. Where there are none, they run in a guest that has soft-RoCE.

All that were chosen run when the first of them is due, and each passes, fails or is skipped here as it did
there, so one pytest call tells of all. They share one guest. Those marked `rdma(alone=True)`, as they take
long, have another each, beside it: a guest is emulated by one processor. Where the guest cannot be had they
are skipped, and the summary says so. pytest never makes the guest by itself, as that fetches 100 MB:
scripts/rdma_vm setup does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvstore.tools.rdma_vm.errors import NoGuest
from kvstore.tools.rdma_vm.guest import GuestCommand, GuestTimeout, inherited_environment, run
from kvstore.tools.rdma_vm.image import Image

ROOT = Path(__file__).parents[1]
DEVICES = Path("/sys/class/infiniband")
OUTCOMES_VARIABLE = "RDMA_TESTS_OUTCOMES"
"""Where the guest's pytest writes what became of each test, a JSON line each."""
TIMEOUT_S = 1500.0
"""Of the whole guest; each test in it has its own, as everywhere."""
MEMORY_MIB = 4096
PLUGINS = ("-p", "pytest_timeout", "-p", "no:cacheprovider")
"""No others: an import takes ten times as long in the guest."""
SHOWN_LINES = 40
TOGETHER = "guest"
"""Before `::` in their names here, where others have their file: pytest-xdist gives these to one process."""


def in_guest() -> bool:
    """Does this process run the tests of another pytest, in the guest?"""
    return OUTCOMES_VARIABLE in os.environ


def has_devices() -> bool:
    return DEVICES.is_dir() and any(DEVICES.iterdir())


class RdmaTests:
    """The plugin that takes every chosen `rdma` test over, if they cannot run here."""

    def __init__(self) -> None:
        self._guest: GuestTests | None = None

    @pytest.hookimpl(trylast=True)  # what was deselected is gone by then
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        theirs = [item for item in items if item.get_closest_marker("rdma")]
        if not theirs or has_devices():
            return
        together = [item.nodeid for item in theirs if not _is_alone(item)]
        alone = [[item.nodeid] for item in theirs if _is_alone(item)]
        guest = self._guest = GuestTests([*([together] if together else []), *alone])
        items[:] = [GuestTest.of(item, guest) if item in theirs else item for item in items]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._guest is not None and self._guest.summary:
            terminalreporter.section("rdma")
            terminalreporter.write_line(self._guest.summary)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test in the guest."""

    word: str
    """passed, skipped or failed."""
    text: str
    """Why it was skipped, or all that pytest said of its failure."""


class FailedInGuest(Exception):
    """Its text is the failure's."""


class GuestTests:
    """The tests of some guests, that run side by side when the first outcome is asked for."""

    def __init__(self, groups: Sequence[list[str]]) -> None:
        """Names of tests, for one guest each."""
        self._groups = [GuestGroup(names) for names in groups]
        self._has_run = False
        self.summary = ""

    def outcome(self, name: str) -> Outcome:
        if not self._has_run:
            self._run()
        return next(group.outcome(name) for group in self._groups if name in group.names)

    def _run(self) -> None:
        self._has_run, started = True, time.monotonic()
        # They end with this process, and an interrupt need not wait for them.
        threads = [threading.Thread(target=group.run, daemon=True) for group in self._groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.monotonic() - started
        self.summary = "\n".join(group.summary for group in self._groups) + f"; {took_s:.0f} s in all"


class GuestGroup:
    """The tests of one guest."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.summary = ""
        self._outcomes: dict[str, Outcome] = {}
        self._missing = Outcome("failed", "its guest did not run")

    def outcome(self, name: str) -> Outcome:
        return self._outcomes.get(name, self._missing)

    def run(self) -> None:
        """Fills in what becomes of each test; raises nothing."""
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rdma-tests-") as name:
            folder = Path(name)
            try:
                ended = self._run_in_guest(folder)
            except NoGuest as reason:
                self.summary = f"{len(self.names)} tests NOT RUN, they need RDMA devices or a guest: {reason}"
                self._missing = Outcome("skipped", f"NOT TESTED: {reason}")
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, each test tells of it
                self.summary = f"{len(self.names)} tests did not run: {error!r}"
                self._missing = Outcome("failed", self.summary)
                return
            self._outcomes = read_outcomes(folder / "outcomes")
            said = (folder / "output").read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        took_s = time.monotonic() - started
        self.summary = f"{len(self._outcomes)} of {len(self.names)} tests ran in a guest, {took_s:.0f} s"
        self._missing = Outcome("failed", "\n".join([f"the guest's pytest {ended} before this test", *said]))

    def _run_in_guest(self, folder: Path) -> str:
        """How its pytest ended. Raises NoGuest."""
        image, ours = Image.find(), f"{sys.version_info.major}.{sys.version_info.minor}"
        if image.python_version() != ours:
            raise NoGuest(f"the guest's pyverbs is for Python {image.python_version()}, and .venv is {ours}")
        pytest_command = [sys.executable, "-m", "pytest", "-q", "--color=no", *PLUGINS]
        command = GuestCommand(
            [*pytest_command, *self.names],
            ROOT,
            inherited_environment(
                [f"{OUTCOMES_VARIABLE}={folder}/outcomes", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"]
            ),
            TIMEOUT_S,
            MEMORY_MIB,
            steady=True,  # deadlines in a test are then those of a guest that is not held up
            share=folder,
        )
        with (folder / "output").open("wb") as output:
            try:
                return f"ended ({run(image, command, output, output)})"
            except GuestTimeout:
                return f"did not end within {TIMEOUT_S:g} s"


def _is_alone(item: pytest.Item) -> bool:
    return any(mark.kwargs.get("alone") for mark in item.iter_markers("rdma"))


class GuestTest(pytest.Item):
    """Stands for a test that runs in the guest; none of its fixtures is made here."""

    guest: GuestTests
    name_there: str
    where: tuple[Path | os.PathLike[str] | str, int | None, str]

    @classmethod
    def of(cls, item: pytest.Item, guest: GuestTests) -> GuestTest:
        assert item.parent is not None
        stand_in = cls.from_parent(item.parent, name=item.name, nodeid=f"{TOGETHER}::{item.nodeid}")
        stand_in.guest, stand_in.name_there, stand_in.where = guest, item.nodeid, item.reportinfo()
        stand_in.add_marker(pytest.mark.timeout(0))  # the first one waits for all
        return stand_in

    def runtest(self) -> None:
        outcome = self.guest.outcome(self.name_there)
        if outcome.word == "skipped":
            pytest.skip(outcome.text)
        if outcome.word == "failed":
            raise FailedInGuest(outcome.text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> object:  # type: ignore[override]
        if isinstance(excinfo.value, FailedInGuest):
            return f"In the guest:\n{excinfo.value}"
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.where


class OutcomeWriter:
    """The plugin of the guest's pytest: writes what becomes of each test."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        captured = "".join(f"\n--- {title} ---\n{content}" for title, content in report.sections)
        line = {"name": report.nodeid, "word": report.outcome, "text": text + captured * report.failed}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """By name. A test that passed and whose teardown failed has two lines, and the later one counts."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {line["name"]: Outcome(line["word"], line["text"]) for line in lines}


def plugin() -> RdmaTests | OutcomeWriter:
    """Ours here, and the guest's there."""
    return OutcomeWriter(Path(os.environ[OUTCOMES_VARIABLE])) if in_guest() else RdmaTests()
