"""Whether a process of this host is still there."""

from __future__ import annotations

import os
from pathlib import Path

#: Fields of ``/proc/PID/stat`` behind the name: the state, and when it was started
#: (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
_STATE, _STARTED = 0, 19

#: A process that has ended and was not yet waited for.
_ENDED = {"Z", "X"}


def birth(process: int) -> str | None:
    """What tells a process from all others that ever have its number.

    Returns:
        The host's boot, the namespace of the number, and the start of the process; None where
        there is no such process, or the system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in _ENDED else f"{boot} {namespace} {fields[_STARTED]}"


def is_dead(process: int, born: str | None) -> bool:
    """Whether a process is known to have ended: it was on this host, and is not there any more.

    Args:
        process: Its number.
        born: Its ``birth``.
    """
    mine, there = birth(os.getpid()), birth(process)
    if mine is None or born is None or _place(mine) != _place(born):
        return False
    return there != born if there is not None else not _exists(process)


def _place(born: str) -> str:
    return born.rpartition(" ")[0]


def _exists(process: int) -> bool:
    """Whether a number is that of a process which may be hidden from us, and is no zombie."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not Path(f"/proc/{process}/stat").exists()
