"""Processes that run ``autotune`` without importing it: forked from one that has imported it all.

A process of its own takes one or two seconds of processor time to import what a command needs. What
such a process does otherwise is the same; what is imported when is tested with new ones.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

#: Runs one command first, so that all that runs import is here and all that they read is read.
#: Then it starts a process for each message, and says how one that has ended did so.
_PROGRAM = """
import base64, contextlib, gc, io, json, os, pickle, signal, socket, sys, tempfile
import autotune.cli, pytest
from pathlib import Path
from tests.once import do_once
from tests.recordings import write_recording
do_once(pytest.MonkeyPatch())
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    os.chdir(folder)
    write_recording(Path("r.jsonl.gz"))
    sys.argv = "autotune run --replay r.jsonl.gz --trials 2".split()
    with contextlib.suppress(SystemExit):
        autotune.cli.main()
    os.chdir("/")
gc.collect()
gc.freeze()
requests = socket.socket(fileno=int(sys.stdin.readline()))
while True:
    text, given, _, _ = socket.recv_fds(requests, 1 << 20, 3)
    if not text:
        break
    request = json.loads(text)
    if "pid" in request:
        _, status = os.waitpid(request["pid"], 0)
        requests.send(str(os.waitstatus_to_exitcode(status)).encode())
        continue
    pid = os.fork()
    if pid == 0:
        for wanted, fd in enumerate(given):
            os.dup2(fd, wanted)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.closerange(3, max(given) + 1)
        requests.detach()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["variables"])
        if request["before"]:
            pickle.loads(base64.b64decode(request["before"]))()
        sys.argv = ["autotune", *request["arguments"]]
        autotune.cli.main()
        sys.exit()
    for fd in given:
        os.close(fd)
    requests.send(str(pid).encode())
"""


@dataclass(slots=True)
class Forked:
    """A running command, with what of ``subprocess.Popen`` the tests use."""

    pid: int
    stdout: IO[str] | None
    stderr: IO[str] | None
    _server: Server
    _ends: int = field(init=False)
    returncode: int | None = None

    def __post_init__(self) -> None:
        self._ends = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._await(0.0)

    def wait(self, timeout: float) -> int:
        """The exit code, within so many seconds."""
        code = self._await(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("autotune", timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._ends, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is left of its output and errors, once it has ended."""
        said = {"stdout": "", "stderr": ""}

        def read(name: str) -> None:
            stream: IO[str] | None = getattr(self, name)
            if stream is not None and not stream.closed:
                with stream:
                    said[name] = stream.read()

        threads = [threading.Thread(target=read, args=(name,)) for name in said]
        for thread in threads:
            thread.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        for thread in threads:
            thread.join()
        return said["stdout"], said["stderr"]

    def _await(self, timeout_s: float) -> int | None:
        if self.returncode is None and select.select([self._ends], [], [], timeout_s)[0]:
            self.returncode = int(self._server.ask({"pid": self.pid}))
            os.close(self._ends)
        return self.returncode


class Server:
    """The process that the others are forked from."""

    def __init__(self) -> None:
        """Start it. It is ready when the first command starts."""
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-c", _PROGRAM],
                env=dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[1])},
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                text=True,
            )
            assert self._process.stdin is not None
            with self._process.stdin as stdin:
                stdin.write(f"{theirs.fileno()}\n")

    def ask(self, request: Mapping[str, object], files: Sequence[int] = ()) -> str:
        """Send a request with open files; return the answer."""
        socket.send_fds(self._requests, [json.dumps(request).encode()], files)
        return self._requests.recv(100).decode()

    def start(
        self,
        arguments: Sequence[object],
        folder: Path,
        variables: Mapping[str, str],
        *,
        before: Callable[[], object] | None = None,
        files: Sequence[int | None] = (None, None, None),
    ) -> Forked:
        """Start ``autotune``.

        Args:
            arguments: What follows ``autotune``.
            folder: Where it runs.
            variables: Its environment.
            before: Called in the new process before the command starts; it can be pickled.
            files: Its standard input, output and errors. In place of None nothing is read, and what
                is written can be read from the process.
        """
        request = {
            "arguments": [str(each) for each in arguments],
            "folder": str(folder),
            "variables": dict(variables),
            "before": base64.b64encode(pickle.dumps(before)).decode() if before else "",
        }
        with contextlib.ExitStack() as ours:
            given, streams = [], []
            for number, file in enumerate(files):
                fd, stream = (file, None) if file is not None else _opened(number, ours)
                given.append(fd)
                streams.append(stream)
            return Forked(int(self.ask(request, given)), streams[1], streams[2], self)

    def close(self) -> None:
        """End it."""
        self._requests.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()


def _opened(number: int, ours: contextlib.ExitStack) -> tuple[int, IO[str] | None]:
    """What a process gets, closed with ``ours``, and what is read from it."""
    if number == 0:
        return ours.enter_context(Path(os.devnull).open()).fileno(), None
    out, into = os.pipe()
    ours.callback(os.close, into)
    return into, os.fdopen(out)


@cache
def forks() -> Server:
    """The one of this process. It ends with it, as nobody sends it requests any more."""
    return Server()
