"""CRC32C of views, and sums of pieces combined."""

import sys
import threading

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.checksum import (
    GIL_RELEASE_BYTES,
    block_checksums,
    checksum,
    checksums,
    combine,
    combine_columns,
    layer_checksums,
    layer_sums,
    pack_sums,
)
from tests.kvstore.kv_blocks import LAYOUTS, PLENTY_S, random_block


@pytest.mark.parametrize("nbytes", [0, 1, 4092, GIL_RELEASE_BYTES - 1, GIL_RELEASE_BYTES, 1 << 20])
def test_a_view_of_any_size_and_start_has_the_checksum_of_its_bytes(nbytes):
    view = np.random.default_rng(nbytes).integers(0, 256, nbytes + 3, dtype=np.uint8)[3:]
    assert checksum(view) == google_crc32c.value(view.tobytes())


def test_the_known_checksum_of_nine_digits():
    assert checksum(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283


@pytest.fixture
def no_forced_switches():
    """A thread keeps the GIL until it lets go of it by itself."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(100.0)
    yield
    sys.setswitchinterval(interval_s)


def test_other_threads_run_while_a_large_view_is_summed(no_forced_switches):
    view = np.zeros(64 << 20, np.uint8)

    def ran_meanwhile():
        begun, ended = threading.Event(), threading.Event()

        def sum_it():
            begun.set()
            checksum(view)
            ended.set()

        thread = threading.Thread(target=sum_it)
        thread.start()
        begun.wait(PLENTY_S)
        meanwhile = not ended.is_set()
        thread.join(PLENTY_S)
        return meanwhile

    assert any(ran_meanwhile() for _ in range(50))  # a busy machine may be too slow to notice


@given(st.integers(1, 300), st.lists(st.integers(0, 2**32 - 1), max_size=5), st.randoms())
def test_sums_of_equal_pieces_combine_into_that_of_the_whole(nbytes, seeds, random):
    pieces = [random.randbytes(nbytes) for _ in seeds]
    assert combine(map(google_crc32c.value, pieces), nbytes) == google_crc32c.value(b"".join(pieces))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_checksums_of_a_blocks_layers_combine_into_the_blocks(name):
    layout = LAYOUTS[name]
    block = random_block(layout, 1)
    (sums,) = layer_sums([layer_checksums(layout, block)], layout.num_layers)
    combined = combine(sums, layout.layer_block_bytes)
    assert combined == checksum(block[: layout.full_block_bytes])


def test_one_changed_layer_changes_the_combined_checksum():
    sums = [1, 2, 3]
    assert len({combine(sums, 64), combine([1, 2, 4], 64), combine([2, 1, 3], 64)}) == 3


@given(
    st.integers(1, 300),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_columns_of_sums_combine_each_into_that_of_its_whole(nbytes, num_pieces, num_columns, seed):
    pieces = np.random.default_rng(seed).integers(0, 256, (num_columns, num_pieces, nbytes), np.uint8)
    sums = np.array([[checksum(piece) for piece in column] for column in pieces], np.uint32)
    combined = combine_columns(sums.reshape(num_columns, num_pieces).T, nbytes)
    assert combined.tolist() == [checksum(column.reshape(-1)) for column in pieces]


@pytest.mark.parametrize("nbytes", [0, 5, GIL_RELEASE_BYTES])
def test_sums_of_many_ranges_are_those_of_each(nbytes):
    memory = np.random.default_rng(1).integers(0, 256, 3 * GIL_RELEASE_BYTES, dtype=np.uint8)
    offsets = [7, 0, memory.nbytes - nbytes]
    wanted = [checksum(memory[start : start + nbytes]) for start in offsets]
    assert checksums(memory, offsets, nbytes).tolist() == wanted
    assert len(checksums(memory, [], nbytes)) == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_full_blocks_are_known_by_their_layer_sums(name):
    layout = LAYOUTS[name]
    blocks = [random_block(layout, seed) for seed in range(3)]
    sums = block_checksums(layout, [layer_checksums(layout, block) for block in blocks])
    assert sums.tolist() == [checksum(block[: layout.full_block_bytes]) for block in blocks]


def test_layer_sums_pack_and_unpack():
    layout = LAYOUTS[next(iter(LAYOUTS))]
    packed = layer_checksums(layout, random_block(layout, 1))
    (sums,) = layer_sums([packed], layout.num_layers)
    assert pack_sums(sums) == packed
    assert sums[1] == checksum(random_block(layout, 1)[layout.layer_offset(1) :][: layout.layer_block_bytes])
