import errno
import logging
import multiprocessing
import os
import signal
import time

import pytest

from kvstore.files import PosixFiles
from kvstore.lease import BEATS_PER_TTL, DirectoryLease, LeaseFile, LeaseRecord, Succession
from kvstore.process_identity import Process
from tests.kvstore.stopped_process import stop_process

TTL_S = 10.0
DEADLINE_S = 60.0
ELSEWHERE = Process("another host", 1, "1")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class FailingFiles(PosixFiles):
    """Fails the calls it is told to with `errno`."""

    def __init__(self, *calls, number=errno.EIO):
        self.calls, self.number = set(calls), number

    def _maybe_fail(self, call):
        if call in self.calls:
            raise OSError(self.number, os.strerror(self.number))

    def open(self, path, flags, mode=0o644):
        self._maybe_fail("create" if flags & os.O_CREAT else "open")
        return super().open(path, flags, mode)

    def pwritev(self, fd, views, offset):
        self._maybe_fail("pwritev")
        return super().pwritev(fd, views, offset)

    def list(self, path):
        self._maybe_fail("list")
        return super().list(path)


class Contenders:
    """Leases on one directory, as hosts that cannot see each other's processes would have them."""

    def __init__(self, directory):
        self.directory = directory
        self.clock = Clock()

    def lease(self, process=ELSEWHERE, files=None):
        return DirectoryLease(
            self.directory, ttl_s=TTL_S, files=files or PosixFiles(), clock=self.clock, process=process
        )

    def stepped(self, **kwargs):
        lease = self.lease(**kwargs)
        lease.step()
        return lease

    def names(self):
        return sorted(os.listdir(self.directory))


@pytest.fixture
def contenders(tmp_path):
    return Contenders(tmp_path)


def test_a_free_directory_is_taken_at_once(contenders):
    holder = contenders.stepped()
    assert (holder.held, holder.epoch, contenders.names()) == (True, 1, ["lease.00000001"])


def test_a_lease_whose_heart_beats_is_never_taken(contenders):
    holder, other = contenders.stepped(), contenders.stepped()
    for _ in range(5 * BEATS_PER_TTL):
        contenders.clock.now_s += TTL_S / BEATS_PER_TTL
        holder.step()
        other.step()
    assert (holder.held, other.held) == (True, False)


def test_a_silent_holder_is_superseded_after_the_ttl_and_not_before(contenders):
    holder, other = contenders.stepped(), contenders.stepped()
    contenders.clock.now_s += TTL_S - 0.1
    other.step()
    assert not other.held
    contenders.clock.now_s += 0.1
    other.step()
    assert (other.held, other.epoch) == (True, 2)
    assert not holder.held


def test_a_holder_that_was_stopped_finds_itself_superseded_and_leaves_the_new_lease_alone(contenders, caplog):
    holder, other = contenders.stepped(), contenders.stepped()
    contenders.clock.now_s += TTL_S
    other.step()
    assert not holder.confirm()
    assert holder.epoch is None
    assert "took over" in caplog.text
    assert contenders.names() == ["lease.00000002"]
    assert other.confirm()


def test_a_holder_that_was_slow_and_not_superseded_goes_on(contenders):
    holder = contenders.stepped()
    contenders.clock.now_s += 3 * TTL_S
    assert not holder.held
    assert holder.confirm()
    assert (holder.held, holder.epoch) == (True, 1)


def test_the_ttl_begins_with_a_contenders_own_first_look(contenders):
    contenders.stepped()
    contenders.clock.now_s += 100 * TTL_S
    late = contenders.stepped()
    assert not late.held
    contenders.clock.now_s += TTL_S
    late.step()
    assert late.held


def test_one_of_three_contenders_takes_over(contenders):
    contenders.stepped()
    others = [contenders.stepped() for _ in range(3)]
    contenders.clock.now_s += TTL_S
    for _ in range(3):
        for other in others:
            other.step()
    assert [other.held for other in others] == [True, False, False]


def test_two_that_decide_upon_the_same_look_cannot_both_hold(contenders):
    contenders.stepped()
    one, two = contenders.stepped(), contenders.stepped()
    contenders.clock.now_s += TTL_S

    class OvertakenFiles(PosixFiles):
        """Lets `one` take over between this contender's look and its attempt."""

        def open(self, path, flags, mode=0o644):
            if flags & os.O_CREAT:
                one.step()
            return super().open(path, flags, mode)

    two._files = OvertakenFiles()
    two.step()
    assert (one.held, two.held) == (True, False)
    assert one.confirm()


def test_a_contender_that_creates_an_epoch_long_past_withdraws(contenders):
    """It looked at epoch 1, slept, and meanwhile 2 came and went and 3 is held: 2 can be created again."""
    holder = contenders.stepped()
    sleeper = contenders.stepped()
    contenders.clock.now_s += TTL_S

    class SleepyFiles(PosixFiles):
        def open(self, path, flags, mode=0o644):
            if flags & os.O_CREAT:
                holder.close()
                for _ in range(2):
                    contenders.stepped().close()
                self.third = contenders.stepped()
                assert self.third.held
            return super().open(path, flags, mode)

    sleeper._files = SleepyFiles()
    sleeper.step()
    assert not sleeper.held
    assert sleeper._files.third.confirm()
    assert contenders.names() == ["lease.00000004"]


def test_a_lease_that_was_given_back_is_taken_at_once_and_epochs_go_on(contenders):
    contenders.stepped().close()
    assert contenders.names() == ["lease.00000001"]
    other = contenders.stepped()
    assert (other.held, other.epoch, contenders.names()) == (True, 2, ["lease.00000002"])


def test_a_closed_lease_is_not_taken_again(contenders):
    lease = contenders.stepped()
    lease.close()
    lease.close()
    lease.step()
    assert (lease.held, lease.confirm()) == (False, False)


def test_closing_one_that_was_superseded_does_not_release_its_successors_lease(contenders):
    holder, other = contenders.stepped(), contenders.stepped()
    contenders.clock.now_s += TTL_S
    other.step()
    holder.close()
    assert other.confirm()
    assert not contenders.stepped().held


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\0" * 512, b'{"holder_id": "x"}'])
def test_a_torn_lease_file_is_waited_out_like_a_silent_holder(contenders, content):
    (contenders.directory / "lease.00000007").write_bytes(content)
    other = contenders.stepped()
    assert not other.held
    contenders.clock.now_s += TTL_S
    other.step()
    assert (other.held, other.epoch) == (True, 8)


def test_a_holder_mends_its_own_torn_file(contenders):
    holder = contenders.stepped()
    (contenders.directory / "lease.00000001").write_bytes(b"{")
    assert holder.confirm()
    assert LeaseRecord.decode((contenders.directory / "lease.00000001").read_bytes()) is not None


def test_a_new_holder_clears_old_epochs_and_nothing_else_away(contenders):
    for name in ("lease.00000003", "lease.00000005", "lease.x", "w0.v.000001.kv"):
        (contenders.directory / name).write_bytes(b"")
    lease = contenders.stepped()
    contenders.clock.now_s += TTL_S
    lease.step()
    assert contenders.names() == ["lease.00000006", "lease.x", "w0.v.000001.kv"]


def test_a_holder_whose_file_was_removed_knows_that_it_holds_nothing(contenders):
    holder = contenders.stepped()
    (contenders.directory / "lease.00000001").unlink()
    assert not holder.confirm()


def test_a_live_process_of_this_host_is_not_taken_for_dead(contenders):
    contenders.stepped(process=Process.this())
    assert not contenders.stepped(process=Process.this()).held


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": "1"}])
def test_a_holder_that_this_host_knows_to_be_dead_is_succeeded_at_once(contenders, change):
    this = Process.this()
    dead = Process(**{"host": this.host, "pid": this.pid, "started": this.started, **change})
    contenders.stepped(process=dead)
    assert contenders.stepped().held


def test_nobody_can_tell_of_another_hosts_process_that_it_is_dead():
    assert not Process("another host", 2**22 + 1, "1").is_dead()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["create", "pwritev", "list"])
def test_a_directory_that_takes_no_lease_costs_one_warning_until_it_does(contenders, caplog, call, number):
    files = FailingFiles(call, number=number)
    with caplog.at_level(logging.WARNING):
        lease = contenders.stepped(files=files)
        lease.step()
    assert not lease.held
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(contenders.directory) in caplog.text
    assert contenders.names() == []
    files.calls.clear()
    lease.step()
    assert lease.held
    assert lease.confirm()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_file_of_a_lease_that_was_given_back_serves_the_next_holder(contenders, number):
    contenders.stepped().close()
    first = contenders.stepped(files=FailingFiles("create", number=number))
    assert (first.held, first.epoch, first.refused) == (True, 2, None)
    assert contenders.names() == ["lease.00000002"]
    second = contenders.stepped(files=FailingFiles("create", number=number))
    assert not second.held
    first.step()
    assert first.held


def test_on_a_full_disk_one_of_two_takes_over_from_a_silent_holder_who_knows_it_later(contenders):
    files = FailingFiles("create", number=errno.ENOSPC)
    silent, *others = contenders.stepped(), contenders.stepped(files=files), contenders.stepped(files=files)
    contenders.clock.now_s += TTL_S
    for lease in others:
        lease.step()
    assert [lease.held for lease in others] == [True, False]
    silent.step()
    assert silent.epoch is None
    others[0].step()
    assert others[0].held


def test_on_a_full_disk_without_any_lease_file_there_is_no_holder_and_the_reason_is_told(contenders):
    lease = contenders.stepped(files=FailingFiles("create", number=errno.ENOSPC))
    assert not lease.held
    assert "No space left" in lease.refused


def test_a_holder_that_cannot_look_or_beat_does_not_evict(contenders):
    files = FailingFiles()
    lease = contenders.stepped(files=files)
    for call in ("list", "open", "pwritev"):
        files.calls = {call}
        assert not lease.confirm()
    contenders.clock.now_s += TTL_S
    assert not lease.held
    files.calls = set()
    assert lease.confirm()


def test_a_file_that_nfs_calls_stale_is_gone(contenders):
    files = FailingFiles("open", number=errno.ESTALE)
    lease = contenders.stepped(files=files)
    assert lease.held
    assert not lease.confirm()
    assert lease.epoch is None


def test_succession_counts_from_the_last_change_it_saw():
    succession = Succession(TTL_S)

    def next_epoch(content, now_s):
        return succession.next_epoch(LeaseFile(4, content), holder_is_dead=False, now_s=now_s)

    assert next_epoch(b"a", 0.0) is None
    assert next_epoch(b"b", 9.0) is None
    assert next_epoch(b"b", 18.0) is None
    assert next_epoch(b"b", 19.0) == 5


class LeaseProcess:
    """A process that contends for `directory` by its own thread; killed at the end."""

    def __init__(self, directory, ttl_s):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_contend, args=[theirs, directory, ttl_s], daemon=True)

    def __enter__(self):
        self.process.start()
        self._answer()
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.join(DEADLINE_S)

    def confirms(self):
        self._pipe.send("confirm")
        return self._answer()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def _answer(self):
        assert self._pipe.poll(DEADLINE_S), "the contender does not answer"
        return self._pipe.recv()


def _contend(pipe, directory, ttl_s):
    lease = DirectoryLease(directory, ttl_s=ttl_s, files=PosixFiles(), clock=time.monotonic)
    lease.start()
    pipe.send("started")
    while True:
        pipe.recv()
        pipe.send(lease.confirm())


@pytest.fixture
def real_lease(tmp_path):
    leases = []

    def make(ttl_s):
        leases.append(DirectoryLease(tmp_path, ttl_s=ttl_s, files=PosixFiles(), clock=time.monotonic))
        leases[-1].start()
        return leases[-1]

    yield make
    for lease in leases:
        lease.close()


def wait_until(condition, deadline_s=DEADLINE_S):
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to be in time"
        time.sleep(0.01)


def test_a_killed_holders_lease_is_taken_without_waiting_for_the_ttl(tmp_path, real_lease):
    ttl_s = 3600.0
    with LeaseProcess(tmp_path, ttl_s) as holder:
        assert holder.confirms()
        other = real_lease(ttl_s)
        assert not other.held
        holder.signal(signal.SIGKILL)
        wait_until(lambda: other.step() or other.held)


def test_a_stopped_holder_is_superseded_and_knows_it_when_it_goes_on(tmp_path, real_lease):
    ttl_s = 1.5
    with LeaseProcess(tmp_path, ttl_s) as holder:
        assert holder.confirms()
        other = real_lease(ttl_s)
        wait_until(lambda: holder.confirms() and not other.held)
        stop_process(holder.process.pid)
        wait_until(lambda: other.held)
        holder.signal(signal.SIGCONT)
        assert not holder.confirms()
        assert other.confirm()


def test_a_thread_keeps_the_lease_alive_past_its_ttl(tmp_path, real_lease):
    ttl_s = 1.5
    holder, other = real_lease(ttl_s), real_lease(ttl_s)
    end_s = time.monotonic() + 2 * ttl_s
    wait_until(lambda: time.monotonic() >= end_s or other.held)
    assert (holder.held, other.held) == (True, False)


def test_the_waiting_thread_takes_the_lease_when_its_holder_ends(real_lease):
    holder, other = real_lease(2.0), real_lease(2.0)
    holder.close()
    wait_until(lambda: other.held)
