import multiprocessing
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.checksum import checksum, layer_checksums, layer_sums
from kvstore.errors import StagingError
from kvstore.layout import PAGE_BYTES
from kvstore.staging import StagingMemory
from tests.kvstore.kv_blocks import LAYOUTS, SMALL, random_block
from tests.kvstore.owner_process import OwnerProcess


@pytest.fixture
def memory():
    memory = StagingMemory.create("node-0", SMALL, num_slots=4)
    yield memory
    memory.close()


@pytest.fixture
def owner():
    with OwnerProcess(SMALL, num_slots=3) as owner:
        yield owner


def is_mapped_here(memory):
    return memory.handle.incarnation in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", LAYOUTS)
def test_slots_lie_on_pages_and_do_not_overlap(name):
    layout = LAYOUTS[name]
    memory = StagingMemory.create("node-0", layout, num_slots=3)
    for slot_id in range(3):
        slot = memory.slot(slot_id)
        assert slot.ctypes.data % PAGE_BYTES == 0
        slot[:] = slot_id + 1
    assert np.array_equal(memory.buffer, np.repeat([1, 2, 3], layout.slot_bytes))
    memory.close()


def test_layer_blocks_and_token_runs_are_windows_into_their_slot(memory):
    slot = memory.slot(2)
    slot[:] = random_block(SMALL, seed=1)
    layer_blocks = [memory.tokens(2, layer, 0, SMALL.block_tokens) for layer in range(SMALL.num_layers)]
    assert np.array_equal(np.concatenate(layer_blocks), slot[: SMALL.full_block_bytes])
    run = memory.tokens(2, 1, 3, 5)
    assert np.array_equal(run, layer_blocks[1][3 * SMALL.token_bytes : 5 * SMALL.token_bytes])
    start = memory.offset(2, layer=1, token=3)
    assert np.array_equal(run, memory.buffer[start : start + len(run)])
    assert len(memory.tokens(2, 1, 16, 16)) == 0


@pytest.mark.parametrize("where", [(4, 0, 0), (-1, 0, 0), (0, 4, 0), (0, 0, 17)])
def test_a_place_outside_the_memory_is_a_bug(memory, where):
    with pytest.raises(AssertionError):
        memory.offset(*where)


def test_every_page_is_in_place_before_the_first_use():
    memory = StagingMemory.create("node-0", SMALL, num_slots=512)
    assert os.fstat(memory.handle.fd).st_blocks * 512 >= memory.handle.nbytes == len(memory.buffer)
    memory.close()


def test_memory_that_does_not_fit_the_machine_is_refused_naming_both_sizes():
    num_slots = (1 << 50) // SMALL.slot_bytes
    with pytest.raises(StagingError, match=r"of \d+ bytes for node-0 .* \d+ bytes .*staging_bytes"):
        StagingMemory.create("node-0", SMALL, num_slots)


def test_memory_without_room_for_one_slot_says_what_to_raise():
    with pytest.raises(StagingError, match=r"0 slots.*8192 bytes.*raise kvstore.staging_bytes"):
        StagingMemory.create("node-0", SMALL, num_slots=0)


def test_two_creations_are_two_incarnations(memory):
    other = StagingMemory.create("node-0", SMALL, num_slots=4)
    assert other.handle.incarnation != memory.handle.incarnation
    other.close()


def test_a_handle_survives_pickling(memory):
    assert pickle.loads(pickle.dumps(memory.handle)) == memory.handle


def test_what_one_process_writes_another_process_sees(owner):
    memory = StagingMemory.attach(owner.handle)
    memory.slot(1)[:] = random_block(SMALL, seed=5)
    assert owner.slot_checksum(1) == checksum(memory.slot(1))
    owner.fill(0, value=9)
    assert set(memory.slot(0)) == {9}
    memory.close()


def test_a_killed_owner_leaves_nothing_to_attach_to_and_nothing_behind(owner):
    owner.kill()
    with pytest.raises(StagingError, match=rf"{owner.handle.incarnation} of owner is gone"):
        StagingMemory.attach(owner.handle)
    assert owner.num_mappings() == 0
    assert not [name for name in os.listdir("/dev/shm") if owner.handle.incarnation in name]


def test_memory_attached_before_its_owner_died_stays_readable_until_closed(owner):
    owner.fill(2, value=7)
    memory = StagingMemory.attach(owner.handle)
    owner.kill()
    assert set(memory.slot(2)) == {7}
    assert owner.num_mappings() == 1
    memory.close()
    assert owner.num_mappings() == 0


def test_a_descriptor_that_means_another_memory_now_is_refused(memory):
    other = StagingMemory.create("node-0", SMALL, num_slots=4)
    with pytest.raises(StagingError, match="another incarnation"):
        StagingMemory.attach(replace(memory.handle, fd=other.handle.fd))
    other.close()


def test_a_descriptor_that_means_another_file_now_is_refused(memory, tmp_path):
    with (
        (tmp_path / "file").open("wb+") as file,
        pytest.raises(StagingError, match="something else now"),
    ):
        StagingMemory.attach(replace(memory.handle, fd=file.fileno()))


def test_nobody_attaches_after_the_owner_closed(memory):
    memory.close()
    memory.close()
    with pytest.raises(StagingError, match="is gone"):
        StagingMemory.attach(memory.handle)


def test_a_view_outlives_close_and_the_mapping_goes_with_the_last_view(memory):
    view = memory.slot(1)
    view[:] = 3
    memory.close()
    assert set(view) == {3}
    assert is_mapped_here(memory)
    del view
    assert not is_mapped_here(memory)


def test_closed_memory_has_no_slots(memory):
    memory.close()
    assert not is_mapped_here(memory)
    with pytest.raises(AssertionError, match="is closed"):
        memory.slot(0)


def test_a_reader_that_exits_takes_nothing_down(memory):

    child = multiprocessing.get_context("spawn").Process(target=_attach_and_exit, args=[memory.handle])
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert set(memory.slot(0)) == {5}


def _attach_and_exit(handle):
    StagingMemory.attach(handle).slot(0)[:] = 5


def test_a_checksum_covers_the_bytes_of_each_layer_and_only_the_tokens_asked_for():
    block = random_block(SMALL, seed=3)
    assert checksum(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283
    whole, first_half = layer_checksums(SMALL, block), layer_checksums(SMALL, block, num_tokens=8)
    block[SMALL.layer_offset(2) + 8 * SMALL.token_bytes] ^= 1
    before, after = layer_sums([whole, layer_checksums(SMALL, block)], SMALL.num_layers)
    assert (before == after).tolist() == [True, True, False, True]
    assert layer_checksums(SMALL, block, num_tokens=8) == first_half
