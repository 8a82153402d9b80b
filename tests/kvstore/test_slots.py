import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.errors import StagingError
from kvstore.slots import SlotPool


def test_too_many_slots_are_refused_naming_both_numbers_and_none_is_taken():
    pool = SlotPool(4)
    pool.take(3)
    with pytest.raises(StagingError, match="2 staging slots wanted, 1 of 4 free"):
        pool.take(2)
    assert pool.num_free == 1


def test_a_slot_given_back_twice_is_a_bug():
    pool = SlotPool(2)
    slots = pool.take(1)
    pool.give_back(slots)
    with pytest.raises(AssertionError):
        pool.give_back(slots)


@pytest.mark.parametrize("slots", [[7], [0, 0], [0, 7]], ids=["unknown", "named twice", "one unknown"])
def test_slots_that_are_not_taken_change_nothing(slots):
    pool = SlotPool(2)
    pool.take(1)
    with pytest.raises(AssertionError):
        pool.give_back(slots)
    assert pool.num_free == 1
    pool.check()


def test_a_quarantined_slot_is_not_handed_out_until_released():
    pool = SlotPool(1)
    slots = pool.take(1)
    pool.quarantine(slots)
    with pytest.raises(StagingError, match="1 quarantined"):
        pool.take(1)
    with pytest.raises(AssertionError):
        pool.give_back(slots)
    pool.release_quarantined(slots)
    assert pool.take(1) == slots


class SlotWalk(RuleBasedStateMachine):
    """Random moves against sets."""

    def __init__(self):
        super().__init__()
        self.pool = SlotPool(8)
        self.taken, self.quarantined = set(), set()

    @rule(wanted=st.integers(0, 9))
    def take(self, wanted):
        free = 8 - len(self.taken) - len(self.quarantined)
        if wanted > free:
            with pytest.raises(StagingError):
                self.pool.take(wanted)
            return
        slots = self.pool.take(wanted)
        assert len(set(slots)) == wanted
        assert not set(slots) & (self.taken | self.quarantined)
        self.taken |= set(slots)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), quarantine=st.booleans())
    def leave(self, data, quarantine):
        slots = data.draw(st.sets(st.sampled_from(sorted(self.taken))))
        self.taken -= slots
        if quarantine:
            self.pool.quarantine(slots)
            self.quarantined |= slots
        else:
            self.pool.give_back(slots)

    @precondition(lambda self: self.quarantined)
    @rule(data=st.data())
    def release(self, data):
        slots = data.draw(st.sets(st.sampled_from(sorted(self.quarantined))))
        self.quarantined -= slots
        self.pool.release_quarantined(slots)

    @invariant()
    def counts_agree(self):
        self.pool.check()
        assert self.pool.num_quarantined == len(self.quarantined)
        assert self.pool.num_free == 8 - len(self.taken) - len(self.quarantined)


SlotWalk.TestCase.settings = settings(max_examples=50, stateful_step_count=30)
test_slots_keep_their_books_on_any_walk = SlotWalk.TestCase
