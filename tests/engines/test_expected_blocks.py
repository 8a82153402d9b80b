from __future__ import annotations

from engines.expected_blocks import ExpectedBlocks
from engines.types import EngineId
from kvstore.keys import BlockKey, WeightsId
from kvstore.prefix_index import PrefixIndex

WEIGHTS = WeightsId("v0")
A, B = (BlockKey(bytes([number]) * 16) for number in (1, 2))
D0, D1 = EngineId("decode-0-0"), EngineId("decode-1-0")


def test_the_blocks_of_an_engine_that_is_gone_are_those_it_still_persists() -> None:
    index = PrefixIndex()
    expected = ExpectedBlocks(index)
    expected.expect([A, B], WEIGHTS, D0)
    expected.expect([B], WEIGHTS, D1)
    expected.expect([A], WEIGHTS, D0)
    expected.failed([A])
    assert sorted(expected.forget_engine(D0)) == [A, B]
    assert not index.is_pending(A)
    assert index.is_pending(B)
    expected.failed([B])
    assert not index.is_pending(B)
    assert expected.forget_engine(D1) == []
