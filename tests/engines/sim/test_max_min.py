from __future__ import annotations

import pytest

from engines.sim.events import Events
from engines.sim.link import Link
from engines.sim.max_min import MaxMin


def ends(*flows: tuple[list[Link], float, float]) -> list[float]:
    """When flows of (links, bytes, start) end."""
    events, ended = Events(), [0.0] * len(flows)
    transfers = MaxMin(events, 1, layerwise=True)

    def end(number: int) -> None:
        ended[number] = events.now_s

    for number, (links, nbytes, start_s) in enumerate(flows):
        events.at(
            start_s, lambda flow: transfers.carry(flow[0], flow[1], end, flow[2]), (links, nbytes, number)
        )
    events.run()
    return ended


def test_a_flow_alone_gets_its_narrowest_link() -> None:
    assert ends(([Link("a", 10.0), Link("b", 4.0)], 20.0, 0.0)) == [pytest.approx(5)]


def test_flows_share_a_link_evenly_and_one_that_ends_leaves_the_other_all_of_it() -> None:
    link = Link("a", 10.0)
    assert ends(([link], 10.0, 0.0), ([link], 30.0, 0.0)) == [pytest.approx(2), pytest.approx(4)]


def test_what_a_flow_cannot_use_goes_to_the_others() -> None:
    # b leaves the first 2 of a's 10; the second gets the other 8.
    wide, narrow = Link("a", 10.0), Link("b", 2.0)
    assert ends(([wide, narrow], 10.0, 0.0), ([wide], 40.0, 0.0)) == [pytest.approx(5), pytest.approx(5)]


def test_a_flow_that_comes_later_slows_the_first() -> None:
    link = Link("a", 10.0)
    assert ends(([link], 30.0, 0.0), ([link], 10.0, 2.0)) == [pytest.approx(4), pytest.approx(4)]


def test_without_a_limit_a_flow_takes_no_time() -> None:
    assert ends(([Link("a", float("inf"))], 1e12, 3.0)) == [3.0]
