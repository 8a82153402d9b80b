import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.eviction import SegmentUse, choose_victims, eviction_order
from kvstore.keys import WeightsId

NOW, OLD, OLDER = WeightsId("now"), WeightsId("old"), WeightsId("older")


def segment(
    name, *, weights_id=NOW, sequence=1, nbytes=100, created_s=1.0, last_use=0, orphaned=False, pinned=False,
    continues=(),
):  # fmt: skip
    return SegmentUse(
        name, weights_id, sequence, nbytes, created_s, last_use, orphaned, pinned, tuple(continues)
    )


def order(*segments, current=NOW):
    return [segment.name for segment in eviction_order(segments, current)]


def test_older_weights_go_before_newer_ones_however_lately_they_were_used():
    segments = (
        segment("now", last_use=1, created_s=1.0),
        segment("old", weights_id=OLD, last_use=2, created_s=3.0),
        segment("older", weights_id=OLDER, last_use=3, created_s=2.0),
    )
    assert order(*segments) == ["older", "old", "now"]


def test_weights_are_as_new_as_their_newest_segment():
    segments = (
        segment("first", weights_id=OLD, created_s=1.0),
        segment("last", weights_id=OLD, created_s=9.0),
        segment("between", weights_id=OLDER, created_s=5.0),
    )
    assert order(*segments) == ["between", "first", "last"]


def test_weights_that_came_while_the_index_lived_are_newer_than_all_it_found():
    segments = (
        segment("mine", weights_id=OLD, created_s=math.inf, last_use=1),
        segment("found", weights_id=OLDER, created_s=9e9, last_use=0),
    )
    assert order(*segments) == ["found", "mine"]


def test_of_weights_that_both_came_while_the_index_lived_the_lately_used_are_newer():
    segments = (
        segment("b", weights_id=OLD, created_s=math.inf, last_use=7),
        segment("a", weights_id=OLDER, created_s=math.inf, last_use=5),
    )
    assert order(*segments) == ["a", "b"]


def test_the_least_recently_used_goes_first():
    assert order(segment("b", last_use=2), segment("c", last_use=3), segment("a", last_use=1)) == list("abc")


def test_after_a_restart_the_oldest_goes_first_and_a_writers_newest_among_equals():
    segments = (
        segment("w.2", sequence=2, created_s=5.0),
        segment("w.1", sequence=1, created_s=5.0),
        segment("v.1", sequence=1, created_s=4.0),
    )
    assert order(*segments) == ["v.1", "w.2", "w.1"]


def test_a_segment_is_kept_as_long_as_what_continues_it():
    segments = (
        segment("start", sequence=1, last_use=1),
        segment("other", sequence=2, last_use=2),
        segment("end", sequence=3, last_use=3, continues=["start"]),
    )
    assert order(*segments) == ["other", "end", "start"]


def test_a_start_that_was_written_again_later_still_goes_last():
    segments = (
        segment("end", sequence=1, last_use=4, continues=["again"]),
        segment("again", sequence=2, last_use=4),
    )
    assert order(*segments) == ["end", "again"]


def test_segments_that_continue_each_other_all_go_once():
    segments = (
        segment("a", continues=["b"], last_use=2),
        segment("b", continues=["a"], last_use=1),
        segment("c", last_use=3),
    )
    assert order(*segments)[2] == "c"
    assert sorted(order(*segments)) == ["a", "b", "c"]


def test_orphaned_segments_go_first_within_their_weights_only():
    segments = (
        segment("orphaned", last_use=9, orphaned=True),
        segment("useful", last_use=1),
        segment("old", weights_id=OLD, created_s=0.5),
    )
    assert order(*segments) == ["old", "orphaned", "useful"]


def test_just_enough_goes():
    segments = [segment(name, last_use=use) for use, name in enumerate("abc")]
    assert choose_victims(segments, 101, NOW) == ["a", "b"]
    assert choose_victims(segments, 100, NOW) == ["a"]
    assert choose_victims(segments, 0, NOW) == []


def test_a_pinned_segment_stays_and_another_goes_for_it():
    segments = [segment("a", last_use=1, pinned=True), segment("b", last_use=2)]
    assert choose_victims(segments, 1, NOW) == ["b"]
    assert choose_victims(segments, 1000, NOW) == ["b"]


def test_a_long_line_of_segments_is_no_deep_recursion():
    line = [segment(f"{i:06}", continues=[f"{i - 1:06}"] if i else [], last_use=i) for i in range(5000)]
    assert order(*line) == [f"{i:06}" for i in reversed(range(5000))]


@st.composite
def stores(draw):
    """Segments of several weights; each continues earlier ones of its writer, as appending makes it."""
    segments = []
    for number in range(draw(st.integers(1, 12))):
        weights_id = draw(st.sampled_from([NOW, OLD, OLDER]))
        writer = draw(st.sampled_from("vw"))
        earlier = [s.name for s in segments if (s.weights_id, s.name[0]) == (weights_id, writer)]
        orphaned = draw(st.integers(0, 5)) == 0
        segments.append(
            segment(
                f"{writer}{number}",
                weights_id=weights_id,
                sequence=number,
                nbytes=draw(st.integers(0, 50)),
                created_s=draw(st.sampled_from([1.0, 2.0, 3.0, math.inf])),
                last_use=draw(st.integers(0, 5)),
                orphaned=orphaned,
                pinned=draw(st.integers(0, 4)) == 0,
                continues=() if orphaned or not earlier else draw(st.sets(st.sampled_from(earlier))),
            )
        )
    return draw(st.permutations(segments))


@given(stores(), st.integers(-5, 400))
def test_enough_goes_and_never_a_pinned_one(segments, excess_bytes):
    by_name = {s.name: s for s in segments}
    victims = [by_name[name] for name in choose_victims(segments, excess_bytes, NOW)]
    assert not any(s.pinned for s in victims)
    assert len({s.name for s in victims}) == len(victims)
    if sum(s.nbytes for s in victims) < excess_bytes:
        assert len(victims) == sum(not s.pinned for s in segments)
    elif victims:
        assert sum(s.nbytes for s in victims[:-1]) < excess_bytes


@given(stores())
def test_weights_go_strictly_in_order_of_age_and_their_orphaned_segments_first(segments):
    newest = {
        weights_id: max(s.created_s for s in segments if s.weights_id == weights_id)
        for weights_id in {s.weights_id for s in segments}
    }
    ordered = eviction_order(segments, NOW)
    for one, later in itertools.pairwise(ordered):
        if one.weights_id == later.weights_id:
            assert one.orphaned >= later.orphaned or later.name in _continued_by(segments)
        else:
            assert one.weights_id != NOW
            assert later.weights_id == NOW or newest[one.weights_id] <= newest[later.weights_id]
    seen = [s.weights_id for s in ordered]
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert changes == max(0, len(set(seen)) - 1)


def _continued_by(segments):
    return {name for s in segments for name in s.continues}


@given(stores())
def test_whatever_has_gone_no_remaining_segment_continues_one_that_has(segments):
    unpinned = [segment_without_pin(s) for s in segments]
    ordered = eviction_order(unpinned, NOW)
    assert len(ordered) == len(segments)
    for gone in range(len(ordered) + 1):
        remaining = ordered[gone:]
        names = {s.name for s in remaining}
        assert all(set(s.continues) <= names for s in remaining)


def segment_without_pin(s):
    return SegmentUse(
        s.name, s.weights_id, s.sequence, s.nbytes, s.created_s, s.last_use, s.orphaned, False, s.continues
    )


@given(stores(), st.randoms())
def test_the_order_does_not_depend_on_how_the_segments_are_listed(segments, random):
    shuffled = list(segments)
    random.shuffle(shuffled)
    assert eviction_order(shuffled, NOW) == eviction_order(segments, NOW)


@pytest.mark.parametrize("excess_bytes", [0, 1])
def test_an_empty_store_has_no_victims(excess_bytes):
    assert choose_victims([], excess_bytes, NOW) == []
