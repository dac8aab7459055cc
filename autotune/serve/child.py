"""Programs in the interpreter that vLLM is installed for: started, read line by line, and ended."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from autotune.errors import InputError, WorkerDied, printable

#: Seconds in which a program must tell something. An engine that compiles everything anew takes
#: minutes to start, and one that reads a large model's weights from a slow disk many.
PATIENCE_S = 3600.0

#: Seconds that a program has to end by itself, before it is killed: fewer than those after which a
#: second Ctrl-C ends autotune at once.
_GRACE_S = 4.0

#: Seconds that killed processes get to be gone, and between two looks: a GPU's memory is free once
#: those that used it are, and the next server needs it.
_MOST_DYING_S, _PAUSE_S = 30.0, 0.05

#: Seconds between two looks at whether a program that tells nothing is still there.
_LOOK_S = 0.5

#: Bytes of the end of a log that a message is taken from, and how many lines where none of these
#: names an error. The processes of an engine write a traceback each.
_TAIL_BYTES, _TAIL_LINES = 65_536, 3

#: A line that names an error, such as ``torch.OutOfMemoryError: CUDA out of memory.``, or as
#: argparse's ``error: unrecognized arguments: --unknown``.
_ERROR = re.compile(r"\b\w*(?:Error|Exception): \S|^\S+: error: \S")

#: What an environment may have that would change what is measured.
_LEFT_OUT = ("AUTOTUNE_TRACE", "VLLM_TUNED_CONFIG_FOLDER")


def environment(**more: str) -> dict[str, str]:
    """The environment of a program: this one's, but for what would change what is measured."""
    kept = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    return {**kept, "VLLM_NO_USAGE_STATS": "1", **more}


class Child:
    """A program and everything that it started, until ``ended``.

    Attributes:
        name: What messages call it.
        log: The file with whatever it prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        log: Path,
        env: Mapping[str, str],
        tells_lines: bool = True,
    ) -> None:
        """Start it, in a process group of its own.

        Args:
            command: The program and its arguments.
            name: What messages call it.
            log: Gets what it prints.
            env: Its environment.
            tells_lines: Whether its standard output is read, and not for the log.

        Raises:
            InputError: It cannot be started.
        """
        self.name, self.log = name, log
        try:
            with log.open("ab") as to_log:
                self._process = subprocess.Popen(  # noqa: S603 - an interpreter that the user named
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if tells_lines else to_log,
                    stderr=to_log,
                    env=dict(env),
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            program = printable(command[0]) or "an empty name"
            raise InputError(
                f"cannot start {program}: {reason}; name the Python that vLLM is installed for "
                "with --python"
            ) from error

    def give(self, job: Mapping[str, Any], *, is_all: bool = True) -> None:
        """Write its job.

        Args:
            job: What it reads, in a line.
            is_all: Whether its input is closed then; else ``go_on`` may follow.
        """
        with suppress(BrokenPipeError):
            self._stdin.write(json.dumps(job).encode() + b"\n")
            self._stdin.flush()
        if is_all:
            with suppress(BrokenPipeError):
                self._stdin.close()

    def go_on(self) -> None:
        """Let it do the next part of a job for which it waits."""
        with suppress(BrokenPipeError):
            self._stdin.write(b"\n")
            self._stdin.flush()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it tells, line by line, until it ends.

        Raises:
            WorkerDied: It tells an error, ends with an exit code other than 0, or tells nothing
                for ``PATIENCE_S``.
        """
        for line in self._raw_lines(PATIENCE_S):
            try:
                told = json.loads(line)
            except ValueError:
                continue  # a library wrote to its own copy of the output
            if isinstance(told, dict):
                if "error" in told:
                    raise self.died(printable(str(told["error"])))
                yield told
        code = self._process.wait()
        if code:
            raise self.died(_ending(code))

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            WorkerDied: It does not end in ``PATIENCE_S``, or with an exit code other than 0.
        """
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise self.died(f"it was not done after {PATIENCE_S:g} s") from None
        if code:
            raise self.died(_ending(code))

    def died(self, reason: str) -> WorkerDied:
        """That it ended, with the end of its log."""
        last = tail(self.log)
        said = f"; it said last: {last}" if last else ""
        return WorkerDied(f"{self.name} ended: {reason}{said}; its whole log is {self.log}")

    @property
    def has_ended(self) -> bool:
        """Whether it is no longer there."""
        return self._process.poll() is not None

    @property
    def ending(self) -> str:
        """How it ended."""
        return _ending(self._process.wait())

    def wait_quietly(self, patience_s: float) -> None:
        """Wait so many seconds at most for its end, whatever that is."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)

    def end(self) -> None:
        """End it and everything that it started; a second call does nothing."""
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            self.wait_quietly(_GRACE_S)
        self.signal(signal.SIGKILL)  # what it started may outlive it
        self._process.wait()
        due_s = time.monotonic() + _MOST_DYING_S
        while _has_living(self._process.pid) and time.monotonic() < due_s:
            time.sleep(_PAUSE_S)
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to everything that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101 - a pipe, by the call above
        return self._process.stdin

    def _raw_lines(self, patience_s: float) -> Iterator[bytes]:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - a pipe, by the call above
        held, due_s = b"", time.monotonic() + patience_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(_LOOK_S):
                    if self._process.poll() is not None:
                        break  # what it started has the pipe, too, and lives
                    if time.monotonic() > due_s:
                        raise self.died(f"it told nothing for {patience_s:g} s")
                    continue
                got = os.read(stdout.fileno(), 65_536)
                if not got:
                    break
                due_s = time.monotonic() + patience_s
                *whole, held = (held + got).split(b"\n")
                yield from whole
        if held:
            yield held


@contextmanager
def started(
    command: Sequence[str],
    *,
    name: str,
    log: Path,
    env: Mapping[str, str],
    tells_lines: bool = True,
) -> Iterator[Child]:
    """A program that is ended with the block, whatever ends that; as ``Child``."""
    child = Child(command, name=name, log=log, env=env, tells_lines=tells_lines)
    try:
        yield child
    finally:
        child.end()


def program(
    python: str, name_of_it: str, *, name: str, log: Path, env: Mapping[str, str] | None = None
) -> AbstractContextManager[Child]:
    """One of this room's programs, started.

    Args:
        python: The interpreter.
        name_of_it: The program.
        name: What messages call it.
        log: Gets what it prints.
        env: More variables of its environment.
    """
    path = importlib.resources.files("autotune") / "serve" / f"{name_of_it}.py"
    return started([python, str(path)], name=name, log=log, env=environment(**(env or {})))


def stop_all(children: Iterable[Child]) -> None:
    """Stop programs and everything that they started, in no more time than one of them.

    What they told can still be read until each is ended.
    """
    every = list(children)
    for child in every:
        child.signal(signal.SIGTERM)
    due_s = time.monotonic() + _GRACE_S
    for child in every:
        child.wait_quietly(max(0.0, due_s - time.monotonic()))
    for child in every:
        child.signal(signal.SIGKILL)


def tail(log: Path) -> str:
    """What a log's end says of an error, in one line: the first that it names, and the last."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = list(dict.fromkeys(filter(_ERROR.search, lines)))
    chosen = [errors[0], errors[-1]] if errors else lines[-_TAIL_LINES:]
    return " / ".join(printable(line) for line in dict.fromkeys(chosen))


def _has_living(group: int) -> bool:
    """Whether a process group has a process that still runs; a zombie does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, *_ = path.read_text().rpartition(") ")[2].split()
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def _ending(code: int) -> str:
    if code >= 0:
        return f"its exit code is {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = ", as the kernel does where memory is short" if -code == signal.SIGKILL else ""
    return f"{name} ended it{more}"
