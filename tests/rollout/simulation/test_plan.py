"""Which division of the nodes is simulated next."""

from __future__ import annotations

from rollout.simulation.plan import Split, next_division


def searched(possible: list[int], most: int, best: int) -> dict[int, Split]:
    """All that is simulated where JCT has its valley at `best`."""
    found: dict[int, Split] = {}
    while (prefill_nodes := next_division(possible, found, most)) is not None:
        jct_s = 100.0 + abs(prefill_nodes - best)
        found[prefill_nodes] = Split(prefill_nodes, 1, jct_s, None, None, None, "")
    return found


def test_few_divisions_are_all_simulated():
    assert sorted(searched([1, 2, 3, 4], 12, 2)) == [1, 2, 3, 4]


def test_of_many_no_more_than_the_budget_allows():
    assert len(searched(list(range(1, 144)), 12, 50)) <= 12


def test_the_search_closes_in_on_the_valley():
    for best in (1, 7, 50, 99, 143):
        found = searched(list(range(1, 144)), 20, best)
        assert abs(min(found.values(), key=lambda split: split.jct_s).prefill_nodes - best) <= 1


def test_it_stops_when_the_best_has_no_neighbours_left():
    assert 5 < len(searched(list(range(1, 17)), 15, 6)) < 15


def test_a_budget_of_one_simulates_one():
    assert len(searched(list(range(1, 9)), 1, 3)) == 1
