import pickle
import time
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.keys import WeightsId
from kvstore.prefix_index import IndexedBlock, PrefixIndex
from kvstore.store import BlockLocation
from tests.kvstore.kv_blocks import key_of

W0, W1 = WeightsId("w0"), WeightsId("w1")


def location(number):
    return BlockLocation("segment", number * 4096, 8192, number)


def keys(*numbers):
    return [key_of(number) for number in numbers]


@pytest.fixture
def index():
    index = PrefixIndex()
    yield index
    index.check()


def test_the_longest_known_prefix_is_found_and_nothing_beyond_a_gap(index):
    for number in (0, 1, 3):
        index.announce(key_of(number), location(number), W0)
    match = index.match(keys(0, 1, 2, 3))
    assert match.stored == tuple(IndexedBlock(key_of(n), location(n)) for n in (0, 1))
    assert (match.pending, match.num_blocks) == ((), 2)


def test_pending_blocks_between_stored_ones_count_as_known(index):
    index.announce(key_of(0), location(0), W0)
    index.expect(keys(1), W0)
    index.announce(key_of(2), location(2), W0)
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
    index.announce(key_of(0), location(0), W0)
    index.expect(keys(0), W0)
    index.cancel(keys(0))
    assert index.match(keys(0)).stored[0].location == location(0)


def test_a_lost_block_cuts_the_prefix_there(index):
    for number in range(3):
        index.announce(key_of(number), location(number), W0)
    assert index.discard(key_of(1))
    assert not index.discard(key_of(1))
    assert index.match(keys(0, 1, 2)).num_blocks == 1


def test_discarding_an_old_copy_leaves_the_persist_on_its_way(index):
    index.expect(keys(0), W0)
    assert not index.discard(key_of(0))
    assert index.num_pending == 1


def test_old_weights_go_as_a_whole(index):
    for number in range(5):
        index.announce(key_of(number), location(number), W0)
    index.expect(keys(10, 11), W1)
    assert index.drop_weights_except(W1) == 5
    assert index.match(keys(0)).num_blocks == 0
    assert index.drop_weights(W1) == 2
    assert index.drop_weights(W1) == 0
    assert len(index) == 0


def test_a_prefix_of_512_blocks_is_matched_well_under_a_millisecond(index):
    chain = keys(*range(512))
    for number, key in enumerate(chain):
        index.announce(key, location(number), W0)
    took_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        assert index.match(chain).num_blocks == 512
        took_s.append(time.perf_counter() - start_s)
    assert min(took_s) < 0.7e-3


def test_an_entry_takes_less_than_300_bytes_even_when_locations_came_by_pickle(index):
    tracemalloc.start()
    for number in range(22_000):
        index.announce(key_of(number), pickle.loads(pickle.dumps(location(number + 300))), W0)
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used_bytes / len(index) < 300


numbers = st.integers(0, 9)


class IndexWalk(RuleBasedStateMachine):
    """Random events against plain dicts. Even numbers are blocks of W0, odd ones of W1."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.stored, self.pending = {}, {}

    @rule(number=numbers, place=numbers)
    def announce(self, number, place):
        self.index.announce(key_of(number), location(place), (W0, W1)[number % 2])
        self.stored[number] = location(place)
        self.pending.pop(number, None)

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

    @rule(parity=st.integers(0, 1), keep=st.booleans())
    def drop(self, parity, keep):
        doomed = {n for n in self.stored | self.pending if n % 2 == (1 - parity if keep else parity)}
        drop = self.index.drop_weights_except if keep else self.index.drop_weights
        assert drop((W0, W1)[parity]) == len(doomed)
        for number in doomed:
            self.stored.pop(number, None)
            self.pending.pop(number, None)

    @rule(context=st.lists(st.sampled_from([0, 2, 4, 6, 8]), unique=True))
    def match(self, context):
        known = []
        for number in context:
            if number not in self.stored and number not in self.pending:
                break
            known.append(number)
        match = self.index.match(keys(*context))
        assert match.num_blocks == len(known)
        expected = [IndexedBlock(key_of(n), self.stored[n]) for n in known if n in self.stored]
        assert list(match.stored) == expected
        assert list(match.pending) == keys(*(n for n in known if n in self.pending))

    @invariant()
    def books_agree(self):
        self.index.check()
        assert len(self.index) == len(self.stored) + len(self.pending)
        assert self.index.num_pending == len(self.pending)


IndexWalk.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_the_index_agrees_with_plain_dicts_on_any_walk = IndexWalk.TestCase
