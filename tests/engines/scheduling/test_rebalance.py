from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engines.read_messages import BlockSpan
from engines.scheduling.read_sides import SideLoad, prefill_share
from engines.scheduling.rebalance import ReadMove, UnreadBlocks, rebalance
from engines.types import ReadSide

BLOCK_BYTES = 1000
GAIN = 0.25
RATE = st.floats(0.2, 5.0)


def unread(*spans: BlockSpan, rate: float = 1.0, queue_blocks: float = 0) -> UnreadBlocks:
    """`rate` in blocks a second."""
    return UnreadBlocks(spans, SideLoad(queue_blocks * BLOCK_BYTES, rate * BLOCK_BYTES))


def moved(
    prefill: UnreadBlocks, decode: UnreadBlocks, slots: int = 0, min_blocks: int = 1
) -> ReadMove | None:
    return rebalance(
        prefill,
        decode,
        block_bytes=BLOCK_BYTES,
        free_prefill_slots=slots,
        min_gain=GAIN,
        min_blocks=min_blocks,
    )


@pytest.mark.parametrize(
    ("prefill", "decode", "slots", "move"),
    [
        (unread((0, 10)), unread((10, 20)), 9, None),
        (unread((0, 10), rate=0.1), unread((10, 20)), 0, ReadMove(ReadSide.DECODE, ((1, 10),))),
        (unread((0, 10)), unread((10, 20), rate=0.1), 0, None),
        (unread((0, 10)), unread((10, 20), rate=0.1), 5, ReadMove(ReadSide.PREFILL, ((15, 20),))),
        (unread((0, 10)), unread((10, 20), rate=0.1), 99, ReadMove(ReadSide.PREFILL, ((11, 20),))),
        (unread((0, 4), (6, 9), rate=0.01), unread(), 0, ReadMove(ReadSide.DECODE, ((0, 4), (6, 9)))),
        (unread((0, 4), (6, 9), rate=0.4), unread((9, 12)), 0, ReadMove(ReadSide.DECODE, ((3, 4), (6, 9)))),
        (unread((0, 10), queue_blocks=16), unread((10, 20)), 0, ReadMove(ReadSide.DECODE, ((2, 10),))),
        (unread(), unread(), 9, None),
        (unread(), unread((0, 1), rate=0.01), 9, ReadMove(ReadSide.PREFILL, ((0, 1),))),
    ],
    ids=[
        "even",
        "prefill slow",
        "decode slow, no free slot",
        "decode slow, few free slots",
        "decode slow, slots enough",
        "whole side",
        "across spans",
        "a queue before it",
        "nothing unread",
        "the last block",
    ],
)
def test_the_slower_side_gives_up_the_end_of_what_it_has_not_begun(
    prefill: UnreadBlocks, decode: UnreadBlocks, slots: int, move: ReadMove | None
) -> None:
    assert moved(prefill, decode, slots) == move


def test_fewer_blocks_than_are_worth_a_move_stay() -> None:
    assert moved(unread((0, 2), rate=0.5), unread()) == ReadMove(ReadSide.DECODE, ((1, 2),))
    assert moved(unread((0, 2), rate=0.5), unread(), min_blocks=2) is None


@given(st.integers(40, 500), RATE, RATE, st.booleans(), st.floats(0.2, 0.8))
def test_most_unread_blocks_of_a_nic_cut_to_a_tenth_move(
    num_blocks: int, prefill_rate: float, decode_rate: float, cut_prefill: bool, done: float
) -> None:
    """The hit was split for these rates; in the middle of it one of them falls to 10 %."""
    assume(0.5 <= prefill_rate / decode_rate <= 2)
    whole = SideLoad(0, prefill_rate * BLOCK_BYTES), SideLoad(0, decode_rate * BLOCK_BYTES)
    share = prefill_share(num_blocks, BLOCK_BYTES, *whole)
    read = int(done * share), int(done * (num_blocks - share))
    prefill = unread((read[0], share), rate=prefill_rate * (0.1 if cut_prefill else 1))
    decode = unread((share + read[1], num_blocks), rate=decode_rate * (1 if cut_prefill else 0.1))
    slow = prefill if cut_prefill else decode
    assume(slow.num_blocks >= 10)
    move = moved(prefill, decode, slots=num_blocks)
    assert move is not None
    assert move.to_side is (ReadSide.DECODE if cut_prefill else ReadSide.PREFILL)
    assert move.num_blocks >= 0.7 * slow.num_blocks


def after(
    prefill: UnreadBlocks, decode: UnreadBlocks, move: ReadMove | None
) -> tuple[UnreadBlocks, UnreadBlocks]:
    if move is None:
        return prefill, decode
    taker, giver = (decode, prefill) if move.to_side is ReadSide.DECODE else (prefill, decode)
    gone = {block for span in move.spans for block in range(*span)}
    left = tuple((block, block + 1) for span in giver.spans for block in range(*span) if block not in gone)
    taker, giver = UnreadBlocks(taker.spans + move.spans, taker.load), UnreadBlocks(left, giver.load)
    return (giver, taker) if move.to_side is ReadSide.DECODE else (taker, giver)


SIDES = st.tuples(st.integers(0, 40), RATE, st.floats(0, 40))


@given(SIDES, SIDES, st.integers(0, 40))
def test_moved_blocks_are_unread_ones_and_finish_sooner(
    left: tuple[int, float, float], right: tuple[int, float, float], slots: int
) -> None:
    prefill = unread((0, left[0]), rate=left[1], queue_blocks=left[2])
    decode = unread((left[0], left[0] + right[0]), rate=right[1], queue_blocks=right[2])
    move = moved(prefill, decode, slots)
    if move is None:
        return
    giver = prefill if move.to_side is ReadSide.DECODE else decode
    blocks = [block for span in move.spans for block in range(*span)]
    assert len(set(blocks)) == len(blocks) == move.num_blocks
    assert set(blocks) <= {block for span in giver.spans for block in range(*span)}
    if move.to_side is ReadSide.PREFILL:
        assert move.num_blocks <= slots

    def later_s(sides: tuple[UnreadBlocks, UnreadBlocks]) -> float:
        return max(
            side.load.finish_s(side.num_blocks * BLOCK_BYTES) if side.num_blocks else 0 for side in sides
        )

    assert later_s(after(prefill, decode, move)) <= (1 - GAIN) * later_s((prefill, decode)) * (1 + 1e-9)


@given(
    st.tuples(st.integers(0, 60), RATE),
    st.tuples(st.integers(0, 60), RATE),
    st.lists(st.tuples(st.floats(0.93, 1.07), st.floats(0.93, 1.07)), min_size=2, max_size=8),
)
def test_rates_measured_a_little_off_move_blocks_once_and_not_to_and_fro(
    left: tuple[int, float], right: tuple[int, float], noise: list[tuple[float, float]]
) -> None:
    """Blocks large enough against the whole that rounding alone could tip a share are left out."""
    prefill, decode = unread((0, left[0])), unread((left[0], left[0] + right[0]))
    assume(left[0] + right[0] >= 40)
    moves = []
    for off in noise:
        prefill = UnreadBlocks(prefill.spans, SideLoad(0, left[1] * off[0] * BLOCK_BYTES))
        decode = UnreadBlocks(decode.spans, SideLoad(0, right[1] * off[1] * BLOCK_BYTES))
        move = moved(prefill, decode, slots=200, min_blocks=2)
        if move is not None:
            moves.append(move.to_side)
        prefill, decode = after(prefill, decode, move)
    assert len(moves) <= 1 or len(set(moves)) == 1, moves
