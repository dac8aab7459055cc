"""Which file system a file lies on: SQLite is not safe on one that hosts share."""

from __future__ import annotations

import os
import re
from pathlib import Path

from autotune.store.engine import database_file

#: File systems that several hosts may mount, as ``/proc/mounts`` names them. Most of those in user
#: space are remote, too (sshfs, s3fs, GlusterFS); ``fuseblk`` is a local disk.
_SHARED = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|lustre|beegfs|beegfs_.*|fhgfs|gpfs|mmfs|panfs|wekafs|daos|ceph"
    r"|glusterfs|afs|ocfs2|gfs2|pvfs2|orangefs|9p|fuse\..*"
)

#: How ``/proc/mounts`` writes characters that would end a field: ``\040`` is a space.
_ESCAPED = re.compile(r"\\([0-7]{3})")

#: The mounts of this process (https://man7.org/linux/man-pages/man5/proc_pid_mounts.5.html).
_MOUNTS = Path("/proc/self/mounts")


def shared_warning(url: str) -> str | None:
    """A line about a SQLite database on a file system that hosts share; None for all others.

    Raises:
        StorageError: The text is no URL.
    """
    file = database_file(url)
    if file is None:
        return None
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:  # not Linux
        return None
    kind = file_system(Path(os.path.realpath(file)), mounts)
    if not _SHARED.fullmatch(kind):
        return None
    return (
        f"{file} is on a file system that hosts share ({kind}), where SQLite may damage it as soon "
        "as two hosts use it, and may be slow: for runs on several hosts give the --storage of a "
        "PostgreSQL server, and for one host a file on its own disk."
    )


def file_system(path: Path, mounts: str) -> str:
    """The kind of file system that a path lies on, such as ``ext4``; empty if none is known.

    Args:
        path: Absolute, without links.
        mounts: As ``/proc/mounts`` has it: a line a mount, later ones over earlier ones.
    """
    kind, longest = "", -1
    for line in mounts.splitlines():
        fields = [_ESCAPED.sub(lambda code: chr(int(code[1], 8)), each) for each in line.split()]
        if len(fields) < 3 or not path.is_relative_to(fields[1]):
            continue
        depth = len(Path(fields[1]).parts)
        if depth >= longest:
            kind, longest = fields[2], depth
    return kind
