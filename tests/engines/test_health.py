"""How a part of the cluster is, as a table: what happens to it, and what it is then."""

from __future__ import annotations

import pytest

from engines.health import Health, PartHealth

RESTART_AFTER_S = 20.0
DO = {
    "answers": lambda part, now_s: part.answered(now_s, 11),
    "answers as another": lambda part, now_s: part.answered(now_s, 12),
    "is silent": lambda part, now_s: part.missed(now_s, "no answer"),
    "is gone": lambda part, now_s: part.gone(now_s, "killed"),
    "is restarted": lambda part, now_s: part.restarting(),
    "is up": lambda part, now_s: part.started(),
    "has all": lambda part, now_s: part.back(),
    "fails": lambda part, now_s: part.failed(now_s, "it could not start"),
}


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], Health.HEALTHY),
        (["answers", "answers"], Health.HEALTHY),
        (["is silent"], Health.SUSPECT),
        (["is silent", "answers"], Health.HEALTHY),
        (["is silent", "is silent"], Health.DEAD),
        (["is silent", "is silent", "is silent"], Health.DEAD),
        (["answers", "is silent", "is silent", "answers"], Health.HEALTHY),
        (["answers", "is silent", "is silent", "answers as another"], Health.DEAD),
        (["answers", "answers as another"], Health.DEAD),
        (["is gone"], Health.DEAD),
        (["is silent", "is gone"], Health.DEAD),
        (["answers", "is gone", "answers"], Health.HEALTHY),
        (["is gone", "is restarted"], Health.RESTARTING),
        (["is gone", "is restarted", "is up"], Health.STALE),
        (["is gone", "is restarted", "is up", "has all"], Health.HEALTHY),
        (["answers", "is gone", "is restarted", "is up", "has all", "answers as another"], Health.HEALTHY),
        (["is gone", "is restarted", "fails"], Health.DEAD),
        (["is gone", "is restarted", "is up", "fails"], Health.DEAD),
    ],
)
def test_what_a_part_is_after_what_happened_to_it(events: list[str], state: Health) -> None:
    part = PartHealth(RESTART_AFTER_S)
    for now_s, event in enumerate(events):
        DO[event](part, float(now_s))
    assert part.state is state
    assert part.serves == (state in (Health.HEALTHY, Health.SUSPECT))
    assert bool(part.why) == (state in (Health.DEAD, Health.RESTARTING, Health.STALE))


@pytest.mark.parametrize(
    ("events", "not_yet_s", "due_s"),
    [
        (["is gone"], 0.9, 1.0),
        (["is silent", "is silent"], 20.9, 21.0),  # the second silence is at 1 s
        (["is silent", "is silent", "is gone"], 2.9, 3.0),
        (["is gone", "is restarted", "fails"], 3.9, 4.0),
        (["is gone", "is restarted", "fails", "is restarted", "fails"], 7.9, 8.0),
    ],
)
def test_when_a_dead_part_is_due_to_be_restarted(events: list[str], not_yet_s: float, due_s: float) -> None:
    part = PartHealth(RESTART_AFTER_S)
    for now_s, event in enumerate(events):
        DO[event](part, float(now_s))
    assert not part.wants_restart(not_yet_s)
    assert part.wants_restart(due_s)


def test_a_part_that_cannot_be_restarted_is_tried_once_a_minute_and_one_that_was_soon_again() -> None:
    part = PartHealth(RESTART_AFTER_S)
    part.gone(0.0, "killed")
    for _ in range(10):
        part.restarting()
        part.failed(0.0, "no room")
    assert not part.wants_restart(59.0)
    assert part.wants_restart(60.0)
    part.restarting()
    part.back()
    part.gone(100.0, "killed")
    assert part.wants_restart(101.0)
    assert part.num_restarts == 1


def test_nobody_who_serves_is_restarted() -> None:
    part = PartHealth(RESTART_AFTER_S)
    assert not part.wants_restart(1000.0)
    part.missed(1000.0, "no answer")
    assert not part.wants_restart(2000.0)
