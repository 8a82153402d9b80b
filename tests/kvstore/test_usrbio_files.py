"""UsrbioFiles against the fake 3FS; the store's contract over it is in test_store.py."""

import errno
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import StoreError
from kvstore.usrbio_files import BOUNCE_BYTES, REQUEST_BYTES, UsrbioFiles
from tests.kvstore.fake_usrbio import FakeUsrbio, Misuse, Outcome

PLENTY_S = 60.0
SIZE = 3 * REQUEST_BYTES + 12345


@pytest.fixture
def mount(tmp_path):
    """A fake 3FS; whatever a test leaves registered fails it."""
    mount = FakeUsrbio(tmp_path / "3fs")
    yield mount
    mount.plan = lambda _: Outcome()
    mount.stop()


@pytest.fixture
def files(mount):
    return UsrbioFiles(mount.mount, deadline_s=PLENTY_S, usrbio=mount)


@pytest.fixture
def fd(mount, files):
    """A new file, open for both directions."""
    fd = files.open(mount.mount / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    files.close(fd)


def some_bytes(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def write(files, fd, data, offset=0):
    return files.pwritev(fd, [data.data], offset)


def read(files, fd, nbytes, offset=0):
    into = np.full(nbytes, 77, np.uint8)
    return into, files.preadv(fd, [into.data], offset)


def test_bytes_come_back_from_pieces_to_pieces_of_other_sizes(mount, files, fd):
    data = some_bytes(SIZE)
    cuts = [data[:4096], data[4096:4099], data[4099:]]
    assert files.pwritev(fd, [cut.data for cut in cuts], 4096) == SIZE
    assert (mount.mount / "file").read_bytes()[4096:] == data.tobytes()
    into = np.zeros(SIZE, np.uint8)
    assert files.preadv(fd, [into[:7].data, into[7:2_000_000].data, into[2_000_000:].data], 4096) == SIZE
    assert np.array_equal(into, data)


def test_a_call_is_cut_into_requests_of_bounded_size(mount, files, fd):
    assert write(files, fd, some_bytes(SIZE)) == SIZE
    assert [request.nbytes for request in mount.requests] == [REQUEST_BYTES] * 3 + [12345]


def test_a_call_beyond_the_bounce_memory_is_short_as_a_system_call_may_be(files, fd):
    data = some_bytes(BOUNCE_BYTES + 5000)
    assert write(files, fd, data) == BOUNCE_BYTES
    assert write(files, fd, data[BOUNCE_BYTES:], BOUNCE_BYTES) == 5000
    into, num_read = read(files, fd, len(data))
    assert num_read == BOUNCE_BYTES
    assert np.array_equal(into[:num_read], data[:num_read])


def test_the_files_end_makes_a_read_short(files, fd):
    data = some_bytes(SIZE)
    write(files, fd, data)
    into, num_read = read(files, fd, SIZE + 3 * REQUEST_BYTES)
    assert num_read == SIZE
    assert np.array_equal(into[:SIZE], data)
    assert set(into[SIZE:]) == {77}
    assert read(files, fd, 10, offset=SIZE)[1] == 0


def test_a_hole_ends_a_read_and_nothing_behind_it_is_moved_forward(files, fd):
    data = some_bytes(REQUEST_BYTES)
    write(files, fd, data)
    write(files, fd, data, 2 * REQUEST_BYTES)
    into, num_read = read(files, fd, 3 * REQUEST_BYTES)
    assert num_read == REQUEST_BYTES
    assert np.array_equal(into[:num_read], data)


def test_short_results_are_asked_for_again(mount, files, fd):
    lengths = random.Random(1)
    mount.plan = lambda request: Outcome(limit=lengths.randrange(1, max(2, request.nbytes)))
    data = some_bytes(SIZE)
    assert write(files, fd, data) == SIZE
    into, num_read = read(files, fd, SIZE)
    assert num_read == SIZE
    assert np.array_equal(into, data)
    assert len(mount.requests) > 20


def test_completions_are_matched_to_requests_whatever_their_order(mount, files, fd):
    data = some_bytes(4 * REQUEST_BYTES)
    write(files, fd, data)
    last_is_read = threading.Event()

    def backwards(request):
        if request.offset == 3 * REQUEST_BYTES:
            last_is_read.set()
            return Outcome()
        return Outcome(after=last_is_read)

    mount.plan = backwards
    # One worker for each request, or the held ones would keep the last from being carried out.
    with_enough_workers(mount)
    into, num_read = read(files, fd, len(data))
    assert num_read == len(data)
    assert np.array_equal(into, data)


def with_enough_workers(mount):
    worker = threading.Thread(target=mount._serve, daemon=True)
    worker.start()
    mount._workers.append(worker)


@pytest.mark.parametrize("bad_request", [0, 2])
def test_an_error_of_one_request_is_the_calls_error_and_the_lane_goes_on(mount, files, fd, bad_request):
    data = some_bytes(SIZE)
    write(files, fd, data)
    first = len(mount.requests)
    mount.plan = lambda request: Outcome(error=errno.EIO if request.number == first + bad_request else 0)
    with pytest.raises(OSError, match="Input/output") as raised:
        read(files, fd, SIZE)
    assert raised.value.errno == errno.EIO
    into, num_read = read(files, fd, SIZE)
    assert num_read == SIZE
    assert np.array_equal(into, data)
    assert not files.abandoned


def test_an_unanswered_request_ends_the_call_and_its_memory_is_never_used_again(mount):
    files = UsrbioFiles(mount.mount, deadline_s=0.2, usrbio=mount)
    fd = files.open(mount.mount / "file", os.O_RDWR | os.O_CREAT)
    old, new = some_bytes(5000, seed=1), some_bytes(5000, seed=2)
    write(files, fd, old)
    answer = threading.Event()
    mount.plan = lambda _: Outcome(after=answer)
    with pytest.raises(OSError, match="1 of 1 USRBIO requests unanswered") as raised:
        read(files, fd, 5000)
    assert raised.value.errno == errno.ETIMEDOUT
    mount.plan = lambda _: Outcome()
    write(files, fd, new)
    into, num_read = read(files, fd, 5000)
    answer.set()  # the late read lands in the memory that was set aside
    assert (num_read, len(files.abandoned)) == (5000, 1)
    assert np.array_equal(into, new)
    files.close(fd)


def test_a_write_to_a_file_opened_for_reading_is_refused(mount, files, fd):
    reader = files.open(mount.mount / "file", os.O_RDONLY)
    with pytest.raises(PermissionError):
        write(files, reader, some_bytes(10))
    assert write(files, fd, some_bytes(10)) == 10
    files.close(reader)


def test_threads_use_rings_of_their_own(mount, files, fd):
    failures = []

    def write_and_read(number):
        data = some_bytes(REQUEST_BYTES + number, seed=number)
        for _ in range(3):
            write(files, fd, data, number * 2 * REQUEST_BYTES)
            into, num_read = read(files, fd, len(data), number * 2 * REQUEST_BYTES)
            if num_read != len(data) or not np.array_equal(into, data):
                failures.append(number)
        finished.append(number)

    finished = []
    threads = [threading.Thread(target=write_and_read, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PLENTY_S)
    assert sorted(finished) == [0, 1, 2, 3]
    assert not failures


def test_a_descriptor_used_again_names_the_new_file(mount, files):
    for number in range(3):
        path = mount.mount / f"file-{number}"
        fd = files.open(path, os.O_RDWR | os.O_CREAT)
        write(files, fd, some_bytes(100, seed=number))
        files.close(fd)
        assert path.read_bytes() == some_bytes(100, seed=number).tobytes()


def test_nothing_is_left_in_shared_memory_or_on_the_mount(mount, files, fd):
    before = set(os.listdir("/dev/shm"))
    done = threading.Thread(target=write, args=[files, fd, some_bytes(10)])
    done.start()
    done.join(PLENTY_S)
    assert set(os.listdir("/dev/shm")) <= before
    assert os.listdir(mount.mount / "3fs-virt" / "iovs") == []


def test_a_directory_elsewhere_is_refused(mount, tmp_path):
    with pytest.raises(StoreError, match="no 3FS mount"):
        UsrbioFiles(tmp_path, deadline_s=1.0, usrbio=mount)


def test_a_missing_hf3fs_module_is_one_clear_line(tmp_path):
    with pytest.raises(StoreError, match="kvstore=3fs needs hf3fs_fuse"):
        UsrbioFiles(tmp_path, deadline_s=1.0)


def test_the_fake_catches_a_ring_used_by_two_threads(mount, fd):
    ring, caught = mount.make_ioring(str(mount.mount), 4), []
    ring.submit()

    def submit():
        try:
            ring.submit()
        except Misuse as misuse:
            caught.append(misuse)

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join(PLENTY_S)
    assert len(caught) == 1


def test_the_fake_catches_a_descriptor_closed_while_registered(tmp_path):
    mount = FakeUsrbio(tmp_path / "3fs")
    path = Path(mount.mount / "file")
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    mount.register_fd(fd)
    os.close(fd)
    with pytest.raises(Misuse, match="closed before"):
        mount.registered_file(fd, read=True)
    with pytest.raises(Misuse, match="registered still"):
        mount.stop()
