"""scripts/rdma_vm: how the guest is made, run and ended."""

import lzma
import os
import signal
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvstore.tools.rdma_vm import cpio
from kvstore.tools.rdma_vm.apt import Apt
from kvstore.tools.rdma_vm.errors import NoGuest
from kvstore.tools.rdma_vm.image import CACHE_VARIABLE, Image, cache_folder
from kvstore.tools.rdma_vm.kernel import KernelModules, bootable

SCRIPT = Path(__file__).parents[3] / "scripts" / "rdma_vm"
DEADLINE_S = 120.0


@pytest.fixture
def run_folders(tmp_path, monkeypatch):
    """Where guests of this test keep their runs, so that their emulators can be told from others'."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def image():
    try:
        return Image.find()
    except NoGuest as reason:
        pytest.skip(f"NOT TESTED: {reason}")


def rdma_vm(*arguments, **options):
    return subprocess.run([SCRIPT, *arguments], capture_output=True, timeout=DEADLINE_S, **options)


def emulators(run_folders):
    """Process ids of emulators that work on a run below the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"file:{run_folders}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # ended meanwhile
            continue
    return found


def wait_until(condition):
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_an_archive_holds_names_modes_and_bytes_at_aligned_places():
    packed = cpio.archive([cpio.folder("bin"), cpio.program("bin/abc", b"12345")])
    found = []
    while packed:
        fields = [int(packed[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, nbytes, name_bytes = fields[1], fields[6], fields[11]
        start = -(-(110 + name_bytes) // 4) * 4
        found.append((packed[110 : 109 + name_bytes], mode, packed[start : start + nbytes]))
        packed = packed[start + -(-nbytes // 4) * 4 :]
    assert found == [
        (b"bin", stat.S_IFDIR | 0o755, b""),
        (b"bin/abc", stat.S_IFREG | 0o755, b"12345"),
        (b"TRAILER!!!", 0, b""),
    ]


def test_modules_load_after_what_they_depend_on_packed_or_not(tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "rdma-rxe.ko").write_bytes(b"ELF\0depends=ib_core,udp-tunnel\0license=GPL\0")
    (tmp_path / "udp-tunnel.ko.xz").write_bytes(lzma.compress(b"ELF\0depends=\0"))
    (tmp_path / "ib_core.ko").write_bytes(b"ELF\0depends=built_in,udp_tunnel\0")
    modules = KernelModules(tmp_path)
    assert modules.in_loading_order(["built_in", "rdma_rxe", "ib_core"]) == [
        "udp_tunnel",
        "ib_core",
        "rdma_rxe",
    ]
    assert modules.read("udp_tunnel").startswith(b"ELF")


def test_a_kernel_packed_with_xz_is_unpacked_and_another_is_left_as_it_is():
    assert bootable(b"boot code" + lzma.compress(b"\x7fELF kernel") + b"the rest") == b"\x7fELF kernel"
    assert bootable(b"boot code, zstd") == b"boot code, zstd"


def test_images_lie_in_the_users_cache_or_where_they_are_told_to(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/my/cache")
    assert cache_folder() == Path("/my/cache/dualpath-rollout/rdma_vm")
    monkeypatch.setenv(CACHE_VARIABLE, "/else/where")
    assert cache_folder() == Path("/else/where")


def test_without_apt_there_is_no_guest_and_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoGuest, match=r"^needs apt-get"):
        Apt(tmp_path / "apt")


def test_without_package_sources_there_is_no_guest_and_nothing_is_left(tmp_path):
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/none"; Dir::Etc::sourceparts "{tmp_path}/no.d";'
    )
    cache = tmp_path / "cache"
    env = os.environ | {"APT_CONFIG": str(tmp_path / "apt.conf"), CACHE_VARIABLE: str(cache)}
    done = rdma_vm("setup", env=env)
    assert done.returncode == 125
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("rdma_vm: cannot run here: ")
    assert "linux-image-amd64" in last
    assert not list(cache.iterdir())


def test_two_guests_at_once_each_tell_their_own_output_and_exit_code(image, run_folders, tmp_path):
    share = tmp_path / "my share"
    outside = tmp_path / "outside"

    def run(code):
        script = f"pwd; echo to stderr >&2; printf 'a\\0b' >'{share}/{code}'; echo x >{outside}; exit {code}"
        return rdma_vm("run", "--share", share, "--", "sh", "-c", script, cwd=tmp_path)

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(run, (7, 0)))
    for code, ended in zip((7, 0), ends, strict=True):
        assert (ended.returncode, ended.stdout) == (code, f"{tmp_path}\n".encode()), ended
        assert ended.stderr.endswith(b"to stderr\n")
        assert (share / str(code)).read_bytes() == b"a\0b"
    assert not outside.exists()
    assert not list(run_folders.iterdir())


def test_a_command_that_takes_too_long_is_stopped_and_leaves_nothing(image, run_folders):
    done = rdma_vm("run", "--timeout", "1", "--", "sleep", "1000")
    assert done.returncode == 124
    assert b"did not end within 1 s" in done.stderr
    assert not emulators(run_folders)
    assert not list(run_folders.iterdir())


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_emulator_outlives_who_started_it(image, run_folders, number, code):
    started = subprocess.Popen([SCRIPT, "run", "--", "sleep", "1000"], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: emulators(run_folders))
        started.send_signal(number)
        assert started.wait(DEADLINE_S) == code
        wait_until(lambda: not emulators(run_folders))
    finally:
        started.kill()
        started.wait()
    assert number == signal.SIGKILL or not list(run_folders.iterdir())
