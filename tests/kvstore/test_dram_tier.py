import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.dram_tier import DramTier
from kvstore.keys import BlockKey

A, B, C, D = (BlockKey(bytes([letter]) * 16) for letter in b"abcd")


def test_the_block_that_was_used_last_goes_last():
    tier = DramTier(3)
    for slot, key in enumerate((A, B, C)):
        assert tier.offer(key, slot) == []
    tier.release(A, tier.use(A))
    assert tier.offer(D, 3) == [1]
    assert tier.find(B) is None
    assert tier.give_up(5) == [2, 0, 3]


def test_a_block_that_is_kept_already_stays_where_it_is():
    tier = DramTier(2)
    tier.offer(A, 0)
    assert tier.offer(A, 1) == [1]
    assert tier.find(A) == 0


def test_without_idle_slots_a_full_tier_takes_nothing():
    tier = DramTier(1)
    tier.offer(A, 0)
    tier.use(A)
    assert tier.offer(B, 1) == [1]
    assert tier.give_up(1) == []
    assert tier.find(A) == 0


def test_a_dropped_block_is_found_no_more_and_its_slot_comes_back_with_its_last_user():
    tier = DramTier(2)
    tier.offer(A, 0)
    tier.use(A)
    tier.use(A)
    assert tier.drop(A) == []
    assert tier.find(A) is None
    tier.offer(A, 1)  # another turn has read it again meanwhile
    assert tier.release(A, 0) == []
    assert tier.release(A, 0) == [0]
    assert (tier.find(A), len(tier)) == (1, 1)


def test_blocks_that_are_held_make_room_for_prompts_only_and_last():
    tier = DramTier(3)
    for slot, key in enumerate((A, B, C)):
        tier.offer(key, slot)
    tier.hold([A, B, D])
    assert (tier.num_room, tier.num_held) == (1, 3)
    assert tier.offer(D, 3) == [2]
    assert tier.offer(C, 4) == [4]
    tier.let_go([B])
    assert tier.give_up(2) == [1, 0]
    tier.let_go([A, D])
    assert tier.offer(C, 4) == []
    tier.check()


def test_a_block_is_held_for_as_long_as_anybody_holds_it():
    tier = DramTier(1)
    tier.hold([A])
    tier.hold([A])
    tier.offer(A, 0)
    tier.let_go([A])
    assert tier.offer(B, 1) == [1]
    tier.let_go([A])
    assert tier.offer(B, 1) == [0]


def test_a_tier_of_no_slots_keeps_nothing():
    tier = DramTier(0)
    assert tier.offer(A, 7) == [7]
    assert len(tier) == 0


@pytest.mark.parametrize("but", [(), (A,), (A, B)])
def test_idle_slots_are_those_nobody_uses_and_nobody_is_about_to(but):
    tier = DramTier(3)
    for slot, key in enumerate((A, B, C)):
        tier.offer(key, slot)
    tier.use(C)
    assert tier.num_idle(but) == 2 - len(but)


class TierWalk(RuleBasedStateMachine):
    """Random moves; the walk keeps its own account of who uses what and which slots are the tier's."""

    SLOTS, MOST = 8, 4

    def __init__(self):
        super().__init__()
        self.tier = DramTier(self.MOST)
        self.outside = set(range(self.SLOTS))
        self.content = {}
        self.uses = []
        self.held = []

    @precondition(lambda self: self.outside)
    @rule(key=st.sampled_from((A, B, C, D)), data=st.data())
    def offer(self, key, data):
        slot = data.draw(st.sampled_from(sorted(self.outside)))
        self.outside.discard(slot)
        self.content[slot] = key
        self.come_back(self.tier.offer(key, slot))
        assert self.content.get(self.tier.find(key), key) == key

    @rule(key=st.sampled_from((A, B, C, D)))
    def use(self, key):
        if self.tier.find(key) is None:
            return
        slot = self.tier.use(key)
        assert self.content[slot] == key
        self.uses.append((key, slot))

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def release(self, data):
        use = data.draw(st.sampled_from(self.uses))
        self.uses.remove(use)
        self.come_back(self.tier.release(*use))

    @rule(num_slots=st.integers(0, 9))
    def give_up(self, num_slots):
        num_idle = self.tier.num_idle()
        given_up = self.tier.give_up(num_slots)
        assert len(given_up) == min(num_slots, num_idle)
        self.come_back(given_up)

    @rule(key=st.sampled_from((A, B, C, D)))
    def drop(self, key):
        self.come_back(self.tier.drop(key))
        assert self.tier.find(key) is None

    @rule(keys=st.sets(st.sampled_from((A, B, C, D))))
    def hold(self, keys):
        self.held.append(sorted(keys))
        self.tier.hold(keys)

    @precondition(lambda self: self.held)
    @rule()
    def let_go(self):
        self.tier.let_go(self.held.pop())

    @rule()
    def clear(self):
        self.come_back(self.tier.clear())
        assert not any(self.tier.find(key) is not None for key in (A, B, C, D))

    def come_back(self, slots):
        used = {slot for _, slot in self.uses}
        assert not used & set(slots), "a slot came back while somebody used it"
        assert not self.outside & set(slots), "a slot came back twice"
        self.outside |= set(slots)

    @invariant()
    def books_agree(self):
        self.tier.check()
        assert self.tier.slots == set(range(self.SLOTS)) - self.outside
        assert self.tier.num_users == len(self.uses)


TierWalk.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_the_tier_keeps_its_books_on_any_walk = TierWalk.TestCase
