"""Which file system a database lies on."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.store import mounts
from autotune.store.mounts import file_system, shared_warning

MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
tmpfs /home/local tmpfs rw 0 0
scratch /scratch\\040one lustre rw 0 0
server:/home /home/ann nfs4 rw 0 0
/dev/vdb /home/ann xfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/autotune.db", "ext4"),
        ("/home/bob/autotune.db", "nfs4"),
        ("/homestead/autotune.db", "ext4"),
        ("/home/local/autotune.db", "tmpfs"),
        ("/scratch one/autotune.db", "lustre"),
        ("/home/ann/autotune.db", "xfs"),  # mounted over another
    ],
)
def test_a_path_lies_on_the_mount_nearest_to_it(path, kind):
    assert file_system(Path(path), MOUNTS) == kind


def test_nothing_is_known_without_mounts():
    assert file_system(Path("/var/autotune.db"), "") == ""


@pytest.mark.parametrize(
    ("kind", "is_shared"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "gpfs")),
        *((kind, True) for kind in ("fuse.sshfs", "fuse.glusterfs", "ceph", "9p")),
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk")),
    ],
)
def test_a_database_on_a_file_system_that_hosts_share_is_warned_of(
    tmp_path, monkeypatch, kind, is_shared
):
    listed = tmp_path / "mounts"
    listed.write_text(f"/dev/vda / ext4 rw 0 0\nshared {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(mounts, "_MOUNTS", listed)
    warning = shared_warning(f"sqlite:///{tmp_path}/autotune.db")
    assert (warning is not None) == is_shared
    if warning is not None:
        assert f"({kind})" in warning
        assert "PostgreSQL" in warning


@pytest.mark.parametrize("url", ["sqlite://", "postgresql+psycopg://user@host/name"])
def test_a_database_without_a_file_is_not_warned_of(url):
    assert shared_warning(url) is None


def test_this_machine_says_where_its_files_lie():
    assert file_system(Path("/proc/self/mounts"), Path("/proc/self/mounts").read_text()) == "proc"
