"""Every exception that autotune raises on purpose.

A bad candidate configuration is never an exception: it is an ``Outcome`` with a reason.

    AutotuneError
    ├── InputError            what the user gave cannot be used as it is
    │   ├── StudyFileError    a study file: unknown key, wrong type, value out of range
    │   ├── ShapeError        a kernel shape that vLLM would never ask for
    │   ├── SpaceError        a search space with no valid configuration, or an unknown axis
    │   ├── RecordingError    a recording that cannot be read
    │   │   └── ReplayMiss    a shape or configuration that the recording does not hold
    │   ├── StorageError      a database that cannot be used
    │   │   └── ClaimLost     a study that another run has taken over
    │   └── ExportError       an output folder that cannot be written, or must not be
    │       └── EntryMissing  vLLM's look-up in a tuned file ends at no entry
    ├── KernelsUnusable       vLLM is not installed, or its kernels cannot be launched
    ├── GpuMissing            no CUDA device where one is needed
    ├── DeviceLost            a GPU that has measured, and does so no more
    └── WorkerDied            a worker process ended, hung or answered with a fault of its own

Every message says what is wrong, the value received, and what to do next.
"""

from __future__ import annotations

import reprlib


class _Shown(reprlib.Repr):
    """``repr`` of a part of a value: values nested deep or of any size end as three dots."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 8
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        """A whole number; Python refuses to write those of more than 4300 digits."""
        bits = x.bit_length()
        return repr(x) if bits <= _LONGEST_BITS else f"a whole number of {bits} bits"


#: Whole numbers of more bits are described, not written: 77 digits say enough.
_LONGEST_BITS = 256

#: Longer than the paths that people have.
_LONGEST_NAME = 500

_SHOWN = _Shown()


def shown(value: object) -> str:
    """A value from outside as messages show it: short, on one line, with no control character."""
    return _SHOWN.repr(value)


def install_hint(extra: str) -> str:
    """What to type to install one of the extras of ``pyproject.toml``; autotune is not on PyPI."""
    return f"pip install '/path/to/clone[{extra}]' (your clone of autotune's repository)"


def printable(text: str) -> str:
    """A text from outside as messages show it: in one line, not too long, and harmless.

    A character that a terminal would obey, or not show, is written as its escape.
    """
    whole = "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )
    return whole if len(whole) <= _LONGEST_NAME else f"{whole[:_LONGEST_NAME]}..."


class AutotuneError(Exception):
    """Base of all errors that end a command with one line and exit code 1."""


class InputError(AutotuneError):
    """What the user gave cannot be used as it is."""


class StudyFileError(InputError):
    """A study file holds an unknown key, a wrong type or a value out of range."""


class ShapeError(InputError):
    """A kernel shape that vLLM would never ask for."""


class SpaceError(InputError):
    """A search space with no valid configuration, or with an unknown axis."""


class RecordingError(InputError):
    """A recording that cannot be read."""


class ReplayMiss(RecordingError):
    """A shape or configuration that the recording does not hold."""


class StorageError(InputError):
    """A database that cannot be used."""


class ClaimLost(StorageError):
    """A study that another run has taken over, because this one was silent for too long."""


class ExportError(InputError):
    """An output folder that cannot be written, or must not be."""


class EntryMissing(ExportError):
    """vLLM's look-up in a tuned file ends at no entry.

    Attributes:
        vllm_error: The name of the exception that stops vLLM; None where vLLM takes its default.
    """

    def __init__(self, message: str, *, vllm_error: str | None) -> None:
        super().__init__(message)
        self.vllm_error = vllm_error


class KernelsUnusable(AutotuneError):
    """vLLM is not installed, or its kernels cannot be launched."""


class GpuMissing(AutotuneError):
    """No CUDA device where one is needed."""


class DeviceLost(AutotuneError):
    """A GPU that has measured, and does so no more: what was under way on it has not failed."""


class WorkerDied(AutotuneError):
    """A worker process ended, hung or answered with a fault of its own.

    Attributes:
        timed_out: Whether the process was ended because it did not answer in time.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out
