"""``autotune trace``: runs a server in which every LoRA look-up is written down."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from autotune.cli.console import err, say
from autotune.cli.tables import counts_text
from autotune.errors import InputError, printable
from autotune.files import try_file
from autotune.plan.traced import Trace, When, read_trace
from autotune.trace import PLUGIN, SCHEMA, VARIABLE

#: The variable that names vLLM's folder of tuned files.
_FOLDER = "VLLM_TUNED_CONFIG_FOLDER"

#: What the times of look-ups are called.
_TIMES: dict[When, str] = {"capture": "captured", "start": "at start", "serving": "serving"}

#: What is passed on to the server.
_PASSED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)

#: What Python ignores, and no other program expects to be ignored.
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)

#: ``si_code`` of a signal from the kernel, such as that of Ctrl-C: the terminal sends it to the
#: server too (``include/uapi/asm-generic/siginfo.h``).
_SI_KERNEL = 0x80


def run_traced(command: Sequence[str], file: Path) -> int:
    """Run a server to its end, and say what it looked up.

    Args:
        command: The server's own command.
        file: The trace; one that is there is replaced, unless the server looks up nothing.

    Returns:
        The server's exit code, or 128 and the number of the signal that ended it.

    Raises:
        InputError: The file cannot be written or is no trace, or the command cannot be started.
    """
    if shutil.which(command[0]) is None:
        raise _unstartable(command[0], "there is no such command")
    before = _begin(file)
    try:
        with _environment(file) as environ:
            code = _run(command, environ)
    finally:
        is_kept = _end(file, before)
    if is_kept:
        say(f"autotune: the server looked up nothing; {file} is the trace of before", err)
        return code
    for line in summary_of(file):
        say(line, err)
    return code


def summary_of(file: Path) -> list[str]:
    """What was looked up so far, in a line each."""
    try:
        trace = read_trace(file)
    except InputError as error:
        return [f"autotune: nothing to tune: {error}"]
    lines = [*trace.notes, _counted(trace)]
    for when, name in _TIMES.items():
        sizes = trace.sizes(when)
        if sizes:
            lines.append(f"Batch sizes, {name}: {counts_text(sizes)}")
    return [*lines, f"Tune them: autotune run --trace {file}"]


def _counted(trace: Trace) -> str:
    gpu = f" on {printable(trace.gpu)}" if trace.gpu else ""
    return (
        f"vLLM {printable(trace.release) or 'of unknown version'}{gpu} looked up "
        f"{len(trace.kinds)} kernels at {len(trace.sizes())} batch sizes, {trace.count} times: "
        f"{trace.source}"
    )


def _begin(file: Path) -> Path | None:
    """Make the trace anew, so that a server's look-ups do not mix with those of another.

    Returns:
        Where the trace is that was there before; None where there was none.

    Raises:
        InputError: There is something else than a trace, or the file cannot be written.
    """
    try_file(file, InputError, advice="name another file with -o")
    try:
        with file.open("a+b") as there:
            there.seek(0)
            first = there.readline(4096)
            if first and SCHEMA.encode() not in first:
                raise InputError(
                    f"{printable(str(file))} is no trace, and would be lost; name another file "
                    "with -o"
                )
        if not first:
            return None
        real = file.resolve()  # a link stays one
        descriptor, name = tempfile.mkstemp(prefix=f"{real.name}.before-", dir=real.parent)
        os.close(descriptor)
        before = Path(name)
        real.replace(before)
        real.touch()
    except OSError as error:
        raise InputError(
            f"cannot write {printable(str(file))}: {error.strerror}; name another file with -o"
        ) from error
    return before


def _end(file: Path, before: Path | None) -> bool:
    """Drop the trace of before; or put it back where none was written, which is returned."""
    if before is None:
        return False
    if file.exists() and file.stat().st_size:
        before.unlink(missing_ok=True)
        return False
    before.replace(file.resolve())
    return True


@contextmanager
def _environment(file: Path) -> Iterator[Mapping[str, str]]:
    """The server's environment variables.

    MoE layers are looked up only where a folder of tuned files is set. An empty one has vLLM take
    its defaults for the LoRA kernels.
    """
    with tempfile.TemporaryDirectory(prefix="autotune-trace-") as empty:
        environ = dict(os.environ)
        environ[VARIABLE] = str(file.resolve())
        environ[_FOLDER] = environ.get(_FOLDER) or empty
        if "VLLM_PLUGINS" in environ:  # a list of those that are allowed
            allowed = [*environ["VLLM_PLUGINS"].split(","), PLUGIN]
            environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys(filter(None, allowed)))
        yield environ


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end, and pass signals on to it."""
    passed = {each for each in _PASSED if signal.getsignal(each) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*passed, signal.SIGCHLD})
    try:
        child = os.posix_spawnp(
            command[0], list(command), environ, setsigmask=before, setsigdef=_RESET
        )
        return _wait(child, passed)
    except (OSError, ValueError) as error:
        reason = str(error.strerror if isinstance(error, OSError) else error)
        raise _unstartable(command[0], reason) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unstartable(program: str, reason: str) -> InputError:
    return InputError(
        f"cannot start {printable(program)}: {reason}; give the server's own command after --, "
        "such as: autotune trace -o trace.jsonl -- vllm serve MODEL --enable-lora"
    )


def _wait(child: int, passed: set[signal.Signals]) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        came = signal.sigwaitinfo({*passed, signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD and came.si_code != _SI_KERNEL:
            os.kill(child, came.si_signo)
