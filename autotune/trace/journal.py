"""The file that all processes of a server write to, a JSON object a line.

Every process appends whole lines, under a lock. The first line says what the file is. Another line
is a look-up when it is new, or later figures of one that the same process wrote before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from autotune.trace import SCHEMA

#: How often a lock is tried that another process holds, and seconds in between. A process that
#: was stopped while it held the lock must not stop the others: appending is safe on local disks.
_TRIES, _PAUSE_S = 100, 0.01


class Journal:
    """One process's way into the file.

    Attributes:
        process: Names the process in its lines: two processes never have the same.
        gpu: The GPU's name, for the first line.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self.gpu = ""
        self.process = f"{os.getpid()}-{time.time_ns():x}"

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append lines, all of them or none.

        Raises:
            OSError: The file cannot be written.
        """
        texts = [json.dumps({"process": self.process, **line}) + "\n" for line in lines]
        if not texts:
            return
        if self._file is None:
            self._file = _opened(self._path)
        _lock(self._file)
        try:
            _append(self._file, "".join(texts), self.gpu)
        finally:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_UN)


def _append(file: int, text: str, gpu: str) -> None:
    size = os.fstat(file).st_size
    if size == 0:
        text = json.dumps(_header(gpu)) + "\n" + text
    elif os.pread(file, 1, size - 1) != b"\n":  # a process was killed while it wrote
        text = "\n" + text
    data, written = text.encode(), 0
    try:
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError:
        if os.fstat(file).st_size == size + written:
            os.ftruncate(file, size)
        raise


def _opened(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")
    return file


def _lock(file: int) -> None:
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:  # a file system without locks
            return
        else:
            return


def _header(gpu: str) -> dict[str, str]:
    """What the first line says: what the file is, and of which vLLM and GPU."""
    return {"schema": SCHEMA, "vllm": _release(), "gpu": gpu}


def _release() -> str:
    try:
        return importlib.metadata.version("vllm")
    except Exception:  # noqa: BLE001 - vLLM may be on the path without being installed
        return str(getattr(sys.modules.get("vllm"), "__version__", ""))
