import pickle
import tracemalloc
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.indexed_blocks import IndexedBlock
from kvstore.keys import WeightsId, chain_root
from kvstore.prefix_index import PrefixIndex
from kvstore.segment_contents import SegmentContents
from kvstore.store import BlockLocation
from tests.kvstore.kv_blocks import SMALL, key_of

W0, W1 = WeightsId("w0"), WeightsId("w1")
ROOTS = {weights_id: chain_root(weights_id, SMALL.format) for weights_id in (W0, W1)}
RECORD_BYTES = 8192


def location(number, segment="w0.v.1.kv"):
    return BlockLocation(segment, number * RECORD_BYTES, RECORD_BYTES, number)


def keys(*numbers):
    return [key_of(number) for number in numbers]


def announce_chain(index, numbers, *, weights_id=W0, parent=None, segment="w0.v.1.kv"):
    """Blocks `numbers` of one context, in one segment; the first follows block `parent`, or starts it."""
    for number in numbers:
        above = ROOTS[weights_id] if parent is None else key_of(parent)
        index.announce(key_of(number), location(number, segment), weights_id, above)
        parent = number


def contents(numbers, *, name="w0.v.1.kv", weights_id=W0, created_s=1.0, footer_bytes=0):
    """A recovered segment that holds one context's blocks `numbers`."""
    numbers = list(numbers)
    parents = [ROOTS[weights_id], *keys(*numbers[:-1])]
    return SegmentContents(
        name=name,
        weights_id=weights_id,
        layout=SMALL,
        writer_id="v",
        created_s=created_s,
        sealed=footer_bytes > 0,
        nbytes=(max(numbers) + 1) * RECORD_BYTES + footer_bytes,
        record_bytes=RECORD_BYTES,
        keys=b"".join(keys(*numbers)),
        parents=b"".join(parents),
        offsets=array("Q", [number * RECORD_BYTES for number in numbers]),
        checksums=array("I", numbers),
    )


@pytest.fixture
def index():
    index = PrefixIndex()
    yield index
    index.check()


def test_the_longest_known_prefix_is_found_and_nothing_beyond_a_gap(index):
    announce_chain(index, (0, 1))
    announce_chain(index, (3,), parent=2)
    match = index.match(keys(0, 1, 2, 3))
    assert match.stored == tuple(IndexedBlock(key_of(n), location(n)) for n in (0, 1))
    assert (match.pending, match.num_blocks) == ((), 2)


def test_pending_blocks_between_stored_ones_count_as_known(index):
    announce_chain(index, (0,))
    index.expect(keys(1), W0)
    announce_chain(index, (2,), parent=1)
    match = index.match(keys(0, 1, 2, 3))
    assert [block.key for block in match.stored] == keys(0, 2)
    assert (match.pending, match.num_blocks) == ((key_of(1),), 3)


def test_nothing_is_known_of_an_empty_or_unknown_context(index):
    assert index.match([]).num_blocks == 0
    assert index.match(keys(5)).num_blocks == 0


def test_a_failed_persist_ends_the_waiting(index):
    index.expect(keys(0, 1), W0)
    index.cancel(keys(1))
    assert index.match(keys(0, 1)).pending == (key_of(0),)
    assert index.num_pending == 1


def test_one_of_two_persists_may_fail_and_the_block_stays_expected(index):
    index.expect(keys(0), W0)
    index.expect(keys(0), W0)
    index.cancel(keys(0))
    assert index.match(keys(0)).pending == (key_of(0),)
    index.cancel(keys(0))
    assert len(index) == 0


def test_a_stored_block_is_neither_expected_nor_cancelled_away(index):
    announce_chain(index, (0,))
    index.expect(keys(0), W0)
    index.cancel(keys(0))
    assert index.match(keys(0)).stored[0].location == location(0)


def test_a_block_is_stored_once_it_is_announced_and_until_it_is_lost(index):
    index.expect(keys(0), W0)
    assert not index.is_stored(key_of(0))
    announce_chain(index, (0,))
    assert index.is_stored(key_of(0))
    index.discard(key_of(0))
    assert not index.is_stored(key_of(0))


def test_a_block_that_is_announced_again_is_found_at_its_newest_place(index):
    announce_chain(index, (0,))
    announce_chain(index, (0,), segment="w0.other.1.kv")
    assert index.match(keys(0)).stored[0].location == location(0, "w0.other.1.kv")
    assert index.forget_segment("w0.v.1.kv") == 0
    assert index.match(keys(0)).num_blocks == 1


def test_the_same_announcement_twice_changes_nothing(index):
    announce_chain(index, (0, 1))
    before = (len(index), index.stored_bytes)
    announce_chain(index, (0, 1))
    assert (len(index), index.stored_bytes) == before


def test_a_lost_block_cuts_the_prefix_there(index):
    announce_chain(index, range(3))
    assert index.discard(key_of(1))
    assert not index.discard(key_of(1))
    assert index.match(keys(0, 1, 2)).num_blocks == 1


def test_discarding_an_old_copy_leaves_the_persist_on_its_way(index):
    index.expect(keys(0), W0)
    assert not index.discard(key_of(0))
    assert index.num_pending == 1


def test_old_weights_go_as_a_whole_and_their_segments_stay_to_be_evicted(index):
    announce_chain(index, range(5))
    index.expect(keys(10, 11), W1)
    assert index.drop_weights_except(W1) == 5
    assert index.match(keys(0)).num_blocks == 0
    assert index.segment_names() == ("w0.v.1.kv",)
    assert index.stored_bytes == 5 * RECORD_BYTES
    assert index.victims(1, W1) == ["w0.v.1.kv"]
    assert index.drop_weights(W1) == 2
    assert index.drop_weights(W1) == 0
    assert len(index) == 0


def test_recovered_blocks_are_found_where_they_lie(index):
    index.add_segment(contents(range(3), footer_bytes=100))
    assert index.match(keys(0, 1, 2, 3)).stored == tuple(
        IndexedBlock(key_of(n), location(n)) for n in range(3)
    )
    assert index.stored_bytes == 3 * RECORD_BYTES + 100


def test_recovery_leaves_what_is_known_already_alone(index):
    announce_chain(index, (0,), segment="w0.other.1.kv")
    index.expect(keys(1), W0)
    index.add_segment(contents(range(3)))
    match = index.match(keys(0, 1, 2))
    assert [block.location.segment for block in match.stored] == ["w0.other.1.kv", "w0.v.1.kv"]
    assert match.pending == (key_of(1),)


def test_a_record_that_a_segment_holds_twice_is_indexed_once(index):
    index.add_segment(contents([0, 1, 1]))
    assert (len(index), index.match(keys(0, 1)).num_blocks) == (2, 2)


def test_a_segment_that_is_being_announced_is_only_noted_by_recovery(index):
    announce_chain(index, (0,))
    index.add_segment(contents(range(3), footer_bytes=1))
    assert index.match(keys(0, 1)).num_blocks == 1
    assert index.stored_bytes == 3 * RECORD_BYTES + 1


def test_a_segment_grows_by_what_is_announced_beyond_the_size_it_was_noted_with(index):
    index.note_segment("w0.v.1.kv", W0, 4 * RECORD_BYTES, 1.0)
    announce_chain(index, (2,))
    assert index.stored_bytes == 4 * RECORD_BYTES
    announce_chain(index, (4,), parent=2)
    assert index.stored_bytes == 5 * RECORD_BYTES
    index.note_segment("w0.v.1.kv", W0, 9 * RECORD_BYTES, 1.0)
    assert index.stored_bytes == 9 * RECORD_BYTES


def test_a_forgotten_segment_takes_its_blocks_with_it(index):
    announce_chain(index, (0, 1))
    announce_chain(index, (2,), parent=1, segment="w0.v.2.kv")
    assert index.forget_segment("w0.v.2.kv") == 1
    assert index.forget_segment("w0.v.2.kv") == 0
    assert index.match(keys(0, 1, 2)).num_blocks == 2
    assert index.stored_bytes == 2 * RECORD_BYTES


def test_blocks_that_lost_an_ancestor_are_orphans_until_it_is_back(index):
    announce_chain(index, (0, 1), segment="w0.v.1.kv")
    announce_chain(index, (2, 3), parent=1, segment="w0.other.1.kv")
    index.match(keys(0))
    assert index.num_orphans == 0
    index.forget_segment("w0.v.1.kv")
    assert index.num_orphans == 2
    announce_chain(index, (0,), segment="w0.v.2.kv")
    assert index.num_orphans == 2
    index.expect(keys(1), W0)
    announce_chain(index, (1,), parent=0, segment="w0.v.2.kv")
    assert index.num_orphans == 0


def test_a_block_whose_parent_is_on_its_way_is_no_orphan(index):
    index.add_segment(contents((0,)))
    index.expect(keys(1), W0)
    announce_chain(index, (2,), parent=1, segment="w0.v.2.kv")
    assert index.num_orphans == 0
    index.cancel(keys(1))
    assert index.num_orphans == 1
    index.expect(keys(1), W0)
    assert index.num_orphans == 0


def test_blocks_that_name_each_other_as_parents_do_not_hang_the_eviction(index):
    announce_chain(index, (0,), segment="w0.v.1.kv")
    index.match(keys(0))
    announce_chain(index, (8,), parent=9, segment="w0.v.2.kv")
    announce_chain(index, (9,), parent=8, segment="w0.v.3.kv")
    assert sorted(index.victims(10**9, W0)) == ["w0.v.1.kv", "w0.v.2.kv", "w0.v.3.kv"]


def test_recovery_finds_the_orphans_that_an_earlier_process_left(index):
    index.add_segment(contents((0, 1)))
    parent_gone = contents((6, 7), name="w0.other.1.kv")
    object.__setattr__(parent_gone, "parents", b"".join(keys(5, 6)))
    index.add_segment(parent_gone)
    assert index.num_orphans == 2
    assert index.victims(1, W0) == ["w0.other.1.kv"]


def test_a_segment_of_orphans_goes_before_one_that_is_older(index):
    announce_chain(index, (0,), segment="w0.v.1.kv")
    announce_chain(index, (10,), segment="w0.other.1.kv")
    announce_chain(index, (1,), parent=0, segment="w0.third.1.kv")
    index.match(keys(10))
    index.match(keys(0, 1))
    index.forget_segment("w0.v.1.kv")
    assert index.victims(1, W0) == ["w0.third.1.kv"]


def test_a_hit_keeps_the_segments_it_read_from(index):
    for number in range(3):
        announce_chain(index, (number,), segment=f"w0.v{number}.1.kv")
    index.match(keys(0))
    assert index.victims(10**9, W0) == ["w0.v1.1.kv", "w0.v2.1.kv", "w0.v0.1.kv"]


def test_the_start_of_a_writers_chain_outlives_its_end(index):
    announce_chain(index, (0,), segment="w0.v.1.kv")
    announce_chain(index, (10,), segment="w0.other.1.kv")
    announce_chain(index, (1,), parent=0, segment="w0.v.2.kv")
    assert index.victims(10**9, W0) == ["w0.other.1.kv", "w0.v.2.kv", "w0.v.1.kv"]


def test_a_pinned_segment_is_no_victim_until_the_last_reader_is_done(index):
    announce_chain(index, (0,))
    index.pin(["w0.v.1.kv"])
    index.pin(["w0.v.1.kv"])
    index.unpin(["w0.v.1.kv"])
    assert index.victims(1, W0) == []
    index.unpin(["w0.v.1.kv"])
    assert index.victims(1, W0) == ["w0.v.1.kv"]


def test_a_segment_may_be_pinned_before_it_is_known_and_unpinned_after_it_went(index):
    index.pin(["w0.v.1.kv"])
    announce_chain(index, (0,))
    assert index.victims(1, W0) == []
    index.forget_segment("w0.v.1.kv")
    index.unpin(["w0.v.1.kv"])


def test_another_jobs_segments_count_and_go_by_their_age(index):
    announce_chain(index, (0,))
    index.note_segment("w1.theirs.000004.kv", W1, 500, 2.0)
    index.note_segment("w2.theirs.000001.kv", WeightsId("w2"), 700, 1.0)
    assert index.stored_bytes == RECORD_BYTES + 1200
    assert index.victims(701, W0) == ["w2.theirs.000001.kv", "w1.theirs.000004.kv"]
    assert index.forget_segment("w2.theirs.000001.kv") == 0
    assert index.stored_bytes == RECORD_BYTES + 500


def test_a_segment_that_another_job_goes_on_writing_counts_as_used(index):
    for writer in ("a", "b"):
        index.note_segment(f"w0.{writer}.1.kv", W0, 100, 1.0)
    index.match(keys(0))
    index.note_segment("w0.a.1.kv", W0, 200, 1.0)
    assert index.victims(1, W0) == ["w0.b.1.kv"]


def test_an_announced_block_takes_less_than_230_bytes_even_when_locations_came_by_pickle(index):
    tracemalloc.start()
    for number in range(22_000):
        place = pickle.loads(pickle.dumps(location(number + 300)))
        index.announce(key_of(number), place, W0, key_of(number - 1))
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used_bytes / len(index) < 230


def test_a_recovered_block_takes_less_than_210_bytes(index):
    segments = [contents(range(i * 500, i * 500 + 500), name=f"w0.v.{i}.kv") for i in range(44)]
    tracemalloc.start()
    for segment in segments:
        index.add_segment(segment)
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used_bytes / len(index) < 210


WRITERS = ("v", "w")


@st.composite
def written_stores(draw):
    """An index of contexts that share beginnings, appended by two writers in small segments, and of each
    block by number its parent and its segment."""
    index, written, fill = PrefixIndex(), {}, dict.fromkeys(WRITERS, 0)
    for number in range(draw(st.integers(1, 25))):
        parent = draw(st.sampled_from([None, *written]))
        writer = draw(st.sampled_from(WRITERS))
        segment = f"w0.{writer}.{fill[writer] // 3:06d}.kv"
        fill[writer] += 1
        announce_chain(index, (number,), parent=parent, segment=segment)
        written[number] = (parent, segment)
        if draw(st.booleans()):
            index.match(keys(*chain_of(written, draw(st.sampled_from([*written])))))
    index.match(keys(0))
    return index, written


def chain_of(written, number):
    """Numbers of the context that ends with block `number`."""
    chain = []
    while number is not None:
        chain.append(number)
        number = written[number][0]
    return chain[::-1]


@given(written_stores())
def test_whatever_is_evicted_a_writers_own_prefixes_stay_whole(store):
    index, written = store
    chains = {number: chain_of(written, number) for number in written}
    own = {
        number: chain
        for number, chain in chains.items()
        if len({written[n][1].split(".")[1] for n in chain}) == 1
    }
    gone = set()
    for name in index.victims(10**12, W0):
        index.forget_segment(name)
        index.check()
        gone.add(name)
        for number, chain in own.items():
            if written[number][1] not in gone:
                assert index.match(keys(*chain)).num_blocks == len(chain)
        orphans = [
            number
            for number, chain in chains.items()
            if written[number][1] not in gone and gone & {written[n][1] for n in chain}
        ]
        assert index.num_orphans == len(orphans)
    assert len(index) == 0


numbers = st.integers(0, 9)
SEGMENTS = [
    (name, weights_id)
    for weights_id in (W0, W1)
    for name in (f"{weights_id}.v.1.kv", f"{weights_id}.v.2.kv", f"{weights_id}.x.1.kv")
]


class IndexWalk(RuleBasedStateMachine):
    """Random events against plain dicts. Even numbers are one context of W0, odd ones one of W1."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.stored, self.pending, self.nbytes = {}, {}, {}
        self.pins, self.learnt = [], set()

    @rule(number=numbers, place=numbers, segment=st.integers(0, 2))
    def announce(self, number, place, segment):
        weights_id = (W0, W1)[number % 2]
        name = SEGMENTS[3 * (number % 2) + segment][0]
        parent = key_of(number - 2) if number > 1 else ROOTS[weights_id]
        self.index.announce(key_of(number), location(place, name), weights_id, parent)
        self.stored[number] = location(place, name)
        self.pending.pop(number, None)
        self.nbytes[name] = max(self.nbytes.get(name, 0), (place + 1) * RECORD_BYTES)

    @rule(number=numbers)
    def expect(self, number):
        self.index.expect(keys(number), (W0, W1)[number % 2])
        if number not in self.stored:
            self.pending[number] = self.pending.get(number, 0) + 1

    @rule(number=numbers)
    def cancel(self, number):
        self.index.cancel(keys(number))
        if number in self.pending:
            self.pending[number] -= 1
            if self.pending[number] == 0:
                del self.pending[number]

    @rule(number=numbers)
    def discard(self, number):
        assert self.index.discard(key_of(number)) == (self.stored.pop(number, None) is not None)

    @rule(segment=st.sampled_from(SEGMENTS), more=st.integers(0, 3))
    def note(self, segment, more):
        name, weights_id = segment
        self.nbytes[name] = self.nbytes.get(name, 0) + more
        self.index.note_segment(name, weights_id, self.nbytes[name], 1.0)

    @rule(segment=st.sampled_from(SEGMENTS))
    def pin(self, segment):
        self.index.pin([segment[0]])
        self.pins.append(segment[0])

    @rule()
    def unpin(self):
        if self.pins:
            self.index.unpin([self.pins.pop()])

    @rule(share=st.floats(0, 1), current=st.sampled_from([W0, W1]))
    def evict(self, share, current):
        excess_bytes = int(share * sum(self.nbytes.values()))
        victims = self.index.victims(excess_bytes, current)
        assert not set(victims) & set(self.pins)
        freed = sum(self.nbytes[name] for name in victims)
        assert freed >= excess_bytes or set(victims) == set(self.nbytes) - set(self.pins)
        others = [name for name in victims if not name.startswith(current)]
        assert victims[: len(others)] == others
        for name in victims:
            doomed = [n for n, place in self.stored.items() if place.segment == name]
            assert self.index.forget_segment(name) == len(doomed)
            for number in doomed:
                del self.stored[number]
            del self.nbytes[name]

    @rule(parity=st.integers(0, 1), keep=st.booleans())
    def drop(self, parity, keep):
        doomed = {n for n in self.stored | self.pending if n % 2 == (1 - parity if keep else parity)}
        drop = self.index.drop_weights_except if keep else self.index.drop_weights
        assert drop((W0, W1)[parity]) == len(doomed)
        for number in doomed:
            self.stored.pop(number, None)
            self.pending.pop(number, None)
        self.learnt.discard(1 - parity if keep else parity)

    @rule(parity=st.integers(0, 1), length=st.integers(0, 5))
    def match(self, parity, length):
        context, known = list(range(parity, 10, 2))[:length], []
        for number in context:
            if number not in self.stored and number not in self.pending:
                break
            known.append(number)
        match = self.index.match(keys(*context))
        assert match.num_blocks == len(known)
        expected = [IndexedBlock(key_of(n), self.stored[n]) for n in known if n in self.stored]
        assert list(match.stored) == expected
        assert list(match.pending) == keys(*(n for n in known if n in self.pending))
        if context and parity in self.stored:
            self.learnt.add(parity)

    @invariant()
    def books_agree(self):
        self.index.check()
        assert len(self.index) == len(self.stored) + len(self.pending)
        assert self.index.num_pending == len(self.pending)
        assert self.index.stored_bytes == sum(self.nbytes.values())
        assert set(self.index.segment_names()) == set(self.nbytes)
        orphans = [n for n in self.stored if n % 2 in self.learnt and self.is_cut_off(n)]
        assert self.index.num_orphans == len(orphans)

    def is_cut_off(self, number):
        """Going up from `number`, does one come to a block that is neither stored nor on its way?"""
        while number in self.stored and number > 1:
            number -= 2
        return number not in self.stored and number not in self.pending


IndexWalk.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_the_index_agrees_with_plain_dicts_on_any_walk = IndexWalk.TestCase
