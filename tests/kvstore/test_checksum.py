"""CRC32C of views, and sums of pieces combined."""

import sys
import threading

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.checksum import GIL_RELEASE_BYTES, checksum, combine, layer_checksums
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
    combined = combine(layer_checksums(layout, block), layout.layer_block_bytes)
    assert combined == checksum(block[: layout.full_block_bytes])


def test_one_changed_layer_changes_the_combined_checksum():
    sums = [1, 2, 3]
    assert len({combine(sums, 64), combine([1, 2, 4], 64), combine([2, 1, 3], 64)}) == 3
