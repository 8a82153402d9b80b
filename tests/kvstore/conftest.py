"""The stores under test, and what the ones that are no local directory need; that is started on demand."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack

import pytest

from kvstore.usrbio_files import UsrbioFiles
from tests.kvstore.fake_usrbio import FakeUsrbio
from tests.kvstore.kv_blocks import PLENTY_S
from tests.kvstore.mooncake_cluster import MooncakeCluster, MooncakeUnderTest, skip_without_mooncake
from tests.kvstore.moosefs import running_moosefs
from tests.kvstore.store_under_test import StoreUnderTest


@pytest.fixture(scope="session")
def moosefs(tmp_path_factory):
    """A MooseFS that no test damages."""
    with running_moosefs(tmp_path_factory.mktemp("moosefs")) as moosefs:
        yield moosefs


@pytest.fixture(scope="module")
def mooncake_cluster(tmp_path_factory):
    """A Mooncake cluster that no test damages. Its threads and sockets are this process's: not for long."""
    skip_without_mooncake()
    with MooncakeCluster(tmp_path_factory.mktemp("mooncake") / "master.log") as cluster:
        yield cluster


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts small file systems, or skips saying why it cannot."""
    mounted = []

    def mount(options):
        path = tmp_path / f"mount{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NOT TESTED: a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def make_under_test(request, tmp_path):
    """Makes a store of a kind and a layout; closed at the test's end."""
    with ExitStack() as closing:

        def make(kind, layout):
            match kind:
                case "mooncake":
                    return MooncakeUnderTest(request.getfixturevalue("mooncake_cluster"), layout)
                case "moosefs":
                    mount = request.getfixturevalue("moosefs").mounts[0]
                    under_test = StoreUnderTest("ssd", layout, mount / tmp_path.name)
                case "3fs":
                    fake = FakeUsrbio(tmp_path / "3fs")
                    closing.callback(fake.stop)
                    directory = fake.mount / "kv"
                    files = UsrbioFiles(directory, deadline_s=PLENTY_S, usrbio=fake)
                    under_test = StoreUnderTest("ssd", layout, directory, files)
                case _:
                    under_test = StoreUnderTest(kind, layout, tmp_path)
            closing.callback(under_test.close)
            return under_test

        yield make
