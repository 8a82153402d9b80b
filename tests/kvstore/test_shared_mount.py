from pathlib import Path

import pytest

from kvstore.shared_mount import is_shared_mount

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /dev/shm rw - tmpfs tmpfs rw
24 22 0:41 / /data/nfs rw,relatime shared:7 master:2 - nfs4 server:/export rw
25 22 0:42 / /data/moose\\040fs rw - fuse mfs#server:9421 rw
26 22 0:43 / /data/three rw - fuse.hf3fs hf3fs rw
27 24 8:1 / /data/nfs/local rw - xfs /dev/sda1 rw
28 22 0:44 / /data/covered rw - xfs /dev/sdb1 rw
29 28 0:45 / /data/covered rw - lustre mgs:/fs rw
"""


@pytest.mark.parametrize(
    ("directory", "shared"),
    [
        ("/data/kv", False),
        ("/dev/shm/kv", False),
        ("/data/nfs", True),
        ("/data/nfs/kv/store", True),
        ("/data/nfs/local/kv", False),
        ("/data/nfs2", False),
        ("/data/moose fs/kv", True),
        ("/data/three/kv", True),
        ("/data/covered/kv", True),
    ],
)
def test_the_innermost_newest_mount_above_a_directory_says_whether_it_is_shared(tmp_path, directory, shared):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert is_shared_mount(Path(directory), mounts) is shared


def test_where_the_kernel_says_nothing_a_directory_is_not_shared(tmp_path):
    assert not is_shared_mount(Path("/data/nfs"), tmp_path / "nothing")


def test_the_directory_of_the_tests_is_looked_up_among_the_real_mounts(tmp_path):
    assert not is_shared_mount(Path("/dev/shm"))
    assert not is_shared_mount(Path("/proc"))
