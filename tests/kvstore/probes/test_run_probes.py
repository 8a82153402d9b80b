"""Whatever a probe does, it becomes findings, and keeps no other from being told."""

import os
import signal
import subprocess
import time

import pytest

from kvstore.probes.finding import Finding, Probe, Verdict
from kvstore.probes.run_probes import run_probes

PLENTY_S = 60.0
FINE = Finding("fine", Verdict.OK, "all is well")


def fine():
    return [FINE]


def broken():
    raise ValueError("two\nlines")


def dead():
    os.kill(os.getpid(), signal.SIGKILL)


def gone():
    os._exit(3)


def noisy():
    os.write(1, b"a library talks\n")
    return [FINE]


def hanging():
    time.sleep(PLENTY_S)


def run(*looks, deadline_s=PLENTY_S):
    probes = [Probe(look.__name__, look) for look in looks]
    found = run_probes(probes, deadline_s=deadline_s, measuring_deadline_s=PLENTY_S)
    assert list(found) == probes
    return [*found.values()]


@pytest.mark.parametrize(
    ("look", "words"),
    [(broken, "ValueError: two lines"), (dead, "signal 9"), (gone, "exit code 3")],
)
def test_a_probe_that_breaks_is_one_failure_of_its_own(look, words):
    (failure,), (other,) = run(look, fine)
    assert (failure.subject, failure.verdict) == (look.__name__, Verdict.FAIL)
    assert words in failure.told
    assert failure.advice
    assert "\n" not in failure.told
    assert other == FINE


def test_a_probe_that_hangs_is_given_up_and_the_others_are_told():
    began_s = time.monotonic()
    (late,), (other,) = run(hanging, fine, deadline_s=1.0)
    assert time.monotonic() - began_s < PLENTY_S / 2
    assert late.subject == "hanging"
    assert "no answer within 1 s" in late.told
    assert late.verdict is not Verdict.OK
    assert other == FINE


def test_what_a_hanging_probe_started_ends_with_it(tmp_path):
    started = tmp_path / "pid"

    def starts_a_child():
        child = subprocess.Popen(["sleep", str(PLENTY_S)])
        started.write_text(str(child.pid))
        child.wait()

    run(starts_a_child, deadline_s=1.0)
    until_s = time.monotonic() + PLENTY_S
    while os.path.exists(f"/proc/{started.read_text()}/fd/0") and time.monotonic() < until_s:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{started.read_text()}/fd/0")


def test_what_libraries_print_is_not_shown(capfd):
    assert run(noisy) == [[FINE]]
    assert capfd.readouterr().out == ""


def test_one_that_measures_has_the_machine_to_itself(tmp_path):
    log = tmp_path / "log"

    def measure():
        with log.open("a") as file:
            file.write("begin ")
        time.sleep(0.2)
        with log.open("a") as file:
            file.write("end ")
        return [FINE]

    def other():
        with log.open("a") as file:
            file.write("other ")
        return [FINE]

    probes = [Probe("a", other), Probe("b", measure, measures=True), Probe("c", measure, measures=True)]
    found = run_probes(probes, deadline_s=PLENTY_S, measuring_deadline_s=PLENTY_S)
    assert log.read_text().split() == ["begin", "end", "begin", "end", "other"]
    assert [probe.subject for probe in found] == ["a", "b", "c"]
