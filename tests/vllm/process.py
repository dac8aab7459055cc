"""Processes that run scripts beside a vLLM, forked from one that has imported PyTorch.

vLLM imports PyTorch's compiler, which takes five seconds of a processor: here once for all of a
release's processes and not once in each. A process that is forked sees the path, the environment
and the files that it is given, as one that is started anew would.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from tests.patience import PATIENCE_S
from tests.vllm.releases import ROOT

if TYPE_CHECKING:
    from typing_extensions import Self

#: A message is longer than no environment and no script.
_LONGEST = 4_000_000


class Running:
    """A process that was forked."""

    def __init__(self, number: int, ended: int) -> None:
        self._number = number
        self._ended = ended

    def wait(self) -> str:
        """What it ended with: ``0`` or ``1``, and nothing for one that was killed."""
        is_ended, _, _ = select.select([self._ended], [], [], PATIENCE_S)
        if not is_ended:
            self.kill()
        with os.fdopen(self._ended) as ended:
            return ended.read()

    def kill(self) -> None:
        """End it at once."""
        os.kill(self._number, signal.SIGKILL)


class Prepared:
    """The process that others are forked from. A context manager, which ends it."""

    def __init__(self, *, is_interpreting: bool = False) -> None:
        """Start it.

        Args:
            is_interpreting: Whether Triton's kernels run in its interpreter: Triton decides that
                when it is imported.
        """
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        interpreting = {"TRITON_INTERPRET": "1"} if is_interpreting else {}
        self._variables = _clean() | {"CUDA_VISIBLE_DEVICES": ""} | interpreting
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this module
                [sys.executable, "-m", "tests.vllm.process", str(theirs.fileno())],
                cwd=ROOT,
                env=self._variables,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ours.close()
        self._process.wait(PATIENCE_S)

    def start(
        self,
        script: str,
        *,
        path: Sequence[Path],
        streams: tuple[IO[Any], IO[Any], IO[Any]],
        variables: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a script.

        Args:
            script: Python.
            path: What comes first on its path, such as a release.
            streams: Its standard input, output and error, each a file or a pipe.
            variables: Environment variables to set beside the usual ones.
        """
        ended, ends = os.pipe()
        before = os.environ.get("PYTHONPATH")
        names = [*map(str, path), *([before] if before else [])]
        request = {
            "script": script,
            "path": [str(each) for each in path],
            "variables": self._variables
            | {"PYTHONPATH": os.pathsep.join(names)}
            | dict(variables or {}),
        }
        files = [*(each.fileno() for each in streams), ends]
        socket.send_fds(self._ours, [json.dumps(request).encode()], files)
        os.close(ends)
        answer = self._ours.recv(64)
        if not answer:
            raise RuntimeError("the process with PyTorch has ended")
        return Running(int(answer), ended)

    def run(
        self,
        script: str,
        *,
        path: Sequence[Path],
        given: object,
        variables: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Run a script to its end; it must end well.

        Args:
            script: Python.
            path: What comes first on its path, such as a release.
            given: What it reads from standard input, as JSON.
            variables: Environment variables to set beside the usual ones.

        Returns:
            The lines of its standard output.
        """
        with tempfile.TemporaryFile("w+") as read, tempfile.TemporaryFile("w+") as out:
            with tempfile.TemporaryFile("w+") as err:
                read.write(json.dumps(given))
                read.seek(0)
                code = self.start(
                    script, path=path, streams=(read, out, err), variables=variables
                ).wait()
                err.seek(0)
                assert code == "0", err.read()
            out.seek(0)
            return out.read().splitlines()


def _clean() -> dict[str, str]:
    """The environment without what would change what is imported, or how."""
    # Bytecode is kept: each process would compile the sources of its vLLM, else.
    ours = ("VLLM_", "TRITON_", "PYTHONDONTWRITEBYTECODE", "AUTOTUNE_TRACE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request until nobody can send one."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: they say how they end
    while True:
        message, files, _, _ = socket.recv_fds(requests, _LONGEST, 4)
        if not message:
            return
        number = os.fork()
        if number == 0:
            requests.close()
            _become(json.loads(message), files)
        for each in files:
            os.close(each)
        requests.send(str(number).encode())


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Run what a request asks for, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, each in enumerate(files[:3]):
        os.dup2(each, stream)
        os.close(each)
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.path[:0] = request["path"]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    code = "0"
    try:
        exec(compile(request["script"], "<script>", "exec"), vars(main))  # noqa: S102 - a test's
    except SystemExit as end:
        code = "1" if end.code else "0"
    except BaseException:  # noqa: BLE001 - as Python does with one that nobody catches
        traceback.print_exc()
        code = "1"
    # As at Python's end, but for the freeing of all that was imported, which takes a second.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(files[3], code.encode())
    os._exit(int(code))


if __name__ == "__main__":
    import gc

    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # as vLLM does; others would be forked, too
    import torch._inductor.lowering  # noqa: F401 - the scripts do

    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
