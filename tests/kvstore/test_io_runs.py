"""Which blocks move together."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.io_runs import MAX_APPEND_BYTES, MAX_READ_BYTES, MAX_RUN_BLOCKS, read_runs, write_runs
from kvstore.keys import BlockKey, WeightsId
from kvstore.layout import PAGE_BYTES
from kvstore.store import BlockLocation, BlockRead, BlockWrite
from tests.kvstore.kv_blocks import key_of

SIZES = st.sampled_from([2 * PAGE_BYTES, 65 * PAGE_BYTES, (1 << 20) + PAGE_BYTES, 40 << 20])
KEY = BlockKey(bytes(16))


def joins(view):
    return view != "alone"


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.booleans()), max_size=60),
    SIZES,
    st.integers(1, 8),
)
def test_every_read_is_in_one_run_and_a_run_is_one_stretch_of_a_segment(blocks, record_bytes, threads):
    reads = [
        BlockRead(KEY, BlockLocation(name, PAGE_BYTES + i * record_bytes, record_bytes, 0), into)
        for name, i, alone in blocks
        for into in ["alone" if alone else "slot"]
    ]
    runs = read_runs(reads, record_bytes, threads, joins)
    assert sorted(i for run in runs for i in run) == list(range(len(reads)))
    assert [min(run) for run in runs] == sorted(min(run) for run in runs)
    for run in runs:
        assert len({reads[i].location.segment for i in run}) == 1
        offsets = [reads[i].location.offset for i in run]
        assert offsets == [offsets[0] + n * record_bytes for n in range(len(run))]
        assert len(run) == 1 or len(run) * record_bytes <= MAX_READ_BYTES
        assert len(run) <= MAX_RUN_BLOCKS
        assert len(run) == 1 or all(reads[i].into == "slot" for i in run)


@given(
    st.lists(st.tuples(st.sampled_from("vw"), st.booleans()), max_size=60),
    SIZES,
    st.sampled_from([1, 10 * PAGE_BYTES, 256 << 20]),
    st.integers(1, 4),
)
def test_writes_keep_their_order_and_a_run_is_of_one_weights_id(blocks, record_bytes, segment_bytes, threads):
    writes = [
        BlockWrite(key_of(i), KEY, WeightsId(weights), "alone" if alone else "slot", ())
        for i, (weights, alone) in enumerate(blocks)
    ]
    runs = write_runs(writes, record_bytes, segment_bytes, threads, joins)
    assert [write for run in runs for write in run] == writes
    for run in runs:
        assert len({write.weights_id for write in run}) == 1
        assert len(run) == 1 or all(write.data == "slot" for write in run)
        fits = min(MAX_APPEND_BYTES, segment_bytes - PAGE_BYTES)
        assert len(run) == 1 or len(run) * record_bytes <= fits
        assert len(run) <= MAX_RUN_BLOCKS


def test_blocks_side_by_side_are_not_parted_without_need():
    record_bytes = 65 * PAGE_BYTES
    writes = [BlockWrite(key_of(i), KEY, WeightsId("w"), "slot", ()) for i in range(100)]
    runs = write_runs(writes, record_bytes, 256 << 20, 2, joins)
    assert [len(run) for run in runs] == [50, 50]
    reads = [
        BlockRead(KEY, BlockLocation("a", PAGE_BYTES + i * record_bytes, record_bytes, 0), "slot")
        for i in reversed(range(30))
    ]
    assert [len(run) for run in read_runs(reads, record_bytes, 2, joins)] == [15, 15]
