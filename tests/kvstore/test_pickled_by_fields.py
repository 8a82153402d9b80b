"""Values that are sent often come back equal, and small."""

import pickle
from dataclasses import FrozenInstanceError, dataclass, field

import pytest

from kvstore.keys import BlockKey
from kvstore.pickled_by_fields import pickled_by_fields
from kvstore.store import BlockLocation, BlockReadResult, ReadStatus


@pickled_by_fields
@dataclass(frozen=True, slots=True)
class One:
    value: tuple[int, ...]


@pytest.mark.parametrize(
    "value",
    [
        One((1, 2)),
        BlockLocation("w0.000001.kv", 4096, 8192, 7),
        BlockReadResult(ReadStatus.OK, b"sums"),
        BlockReadResult(ReadStatus.MISSING),
        [One(()), BlockKey(b"k" * 32), One((3,))],
    ],
)
def test_a_value_comes_back_equal(value):
    assert pickle.loads(pickle.dumps(value)) == value


def test_a_value_stays_frozen():
    with pytest.raises(FrozenInstanceError):
        One((1,)).value = (2,)


def test_a_field_that_no_argument_sets_is_refused():
    with pytest.raises(AssertionError, match="Two"):

        @pickled_by_fields
        @dataclass(frozen=True, slots=True)
        class Two:
            value: int = field(default=0, init=False)
