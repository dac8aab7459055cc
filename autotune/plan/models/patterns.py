"""Matching a regular expression of somebody else's, which may never end."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence

from autotune.errors import InputError, shown

#: Processor time for all names together. Patterns of real adapters take a hundredth of it.
_LIMIT_S = 1

#: Wall-clock time, for a machine that gives the process no processor time.
_WAIT_S = 60

#: A pattern with large repetitions can take any amount of memory.
_LIMIT_BYTES = 2**30

# A process of its own: Python's re cannot be interrupted by another thread, and the processor time
# of a process can be limited, which does not depend on what else the machine does.
_PROGRAM = f"""
import json, re, resource, sys
def limit(kind, most):
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, hard))
limit(resource.RLIMIT_AS, {_LIMIT_BYTES})
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_CPU, {_LIMIT_S})
pattern, names = json.load(sys.stdin)
try:
    print(json.dumps([re.fullmatch(pattern, name) is not None for name in names]))
except (re.error, OverflowError, RecursionError, MemoryError) as error:
    print(json.dumps(str(error) or type(error).__name__))
"""


class PatternError(InputError):
    """A pattern that is no valid regular expression, or that takes too long to match."""


def matching(pattern: str, names: Sequence[str]) -> frozenset[str]:
    """The names that a regular expression matches as a whole.

    Args:
        pattern: The expression.
        names: The names.

    Raises:
        PatternError: The expression is not valid, or matching takes more than a second.
    """
    return _matching(pattern, tuple(dict.fromkeys(names)))


@functools.lru_cache(maxsize=8)
def _matching(pattern: str, names: tuple[str, ...]) -> frozenset[str]:
    try:
        done = subprocess.run(  # noqa: S603 - this Python, and a program that is written above
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([pattern, names]),
            capture_output=True,
            text=True,
            timeout=_WAIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _takes_too_long(pattern) from None
    if done.returncode in {-signal.SIGXCPU, -signal.SIGKILL}:
        raise _takes_too_long(pattern)
    if done.returncode != 0:
        raise PatternError(f"is a pattern that cannot be matched: got {shown(pattern)}")
    found = json.loads(done.stdout)
    if isinstance(found, str):
        raise PatternError(f"is no valid pattern: got {shown(pattern)}: {found}")
    return frozenset(name for name, matches in zip(names, found, strict=True) if matches)


def _takes_too_long(pattern: str) -> PatternError:
    return PatternError(
        f"is a pattern that takes more than a second to match: got {shown(pattern)}; write it "
        "without a repetition within a repetition, or as a list of names"
    )
