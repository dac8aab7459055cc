"""Many commands at the same moment, some of which are killed, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from optuna.storages import RDBStorage

from autotune.store import Store, StudyRecord, overview
from tests.cli.command import environment
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from typing_extensions import Self

#: Forks a process for each command, after one run has imported and read all that every run needs:
#: they start at once, and take a second of processor time less.
_FORKS = """
import contextlib, io, json, os, sys, tempfile
import autotune.cli
from pathlib import Path
from tests.recordings import write_recording
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    os.chdir(folder)
    write_recording(Path("r.jsonl.gz"))
    sys.argv = "autotune run --replay r.jsonl.gz --trials 2".split()
    with contextlib.suppress(SystemExit):
        autotune.cli.main()
    os.chdir("/")
for line in sys.stdin:
    pids = {}
    for number, (arguments, folder, log) in enumerate(json.loads(line)):
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1); os.dup2(out, 2)
            sys.argv = ["autotune", *arguments]
            autotune.cli.main()
        pids[pid] = number
    print(json.dumps(list(pids)), flush=True)
    codes = [0] * len(pids)
    for _ in range(len(pids)):
        pid, status = os.wait()
        codes[pids[pid]] = os.waitstatus_to_exitcode(status)
    print(json.dumps(codes), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    said: str


class Launcher:
    """Starts commands at the same moment. A context manager."""

    def __enter__(self) -> Self:
        """Import everything that the commands need, once."""
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", _FORKS],
            env=environment() | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_exception: object) -> None:
        self._in.close()
        self._out.close()
        self._process.wait(PATIENCE_S)

    def run(
        self,
        commands: Sequence[Sequence[object]],
        folder: Path,
        *,
        signals: Iterable[tuple[float, int, int]] = (),
    ) -> list[Ended]:
        """Run commands to their ends, all in one folder.

        Args:
            commands: What follows ``autotune``, of each.
            folder: Where they run.
            signals: When to send a signal (seconds from the start), the number of the command, and
                the signal.
        """
        logs = [folder / f"said-{number}" for number in range(len(commands))]
        rows = [
            ([str(each) for each in command], str(folder), str(log))
            for command, log in zip(commands, logs, strict=True)
        ]
        self._in.write(json.dumps(rows) + "\n")
        self._in.flush()
        pids = json.loads(self._out.readline())
        begun_s = time.monotonic()
        for after_s, number, sent in sorted(signals):
            time.sleep(max(0.0, begun_s + after_s - time.monotonic()))
            if _is_running(pids[number]):
                os.kill(pids[number], sent)
        codes = json.loads(self._out.readline())
        return [Ended(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]

    @property
    def _in(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _out(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def problems_of(ended: Sequence[Ended], killed: Iterable[int] = ()) -> list[str]:
    """What is wrong with how commands ended: those that live must end with 0."""
    found = []
    for number, one in enumerate(ended):
        if one.code != 0 and not (number in set(killed) and one.code == -signal.SIGKILL):
            found.append(f"command {number} ended with {one.code}: {one.said[-400:]!r}")
        if "Traceback" in one.said:
            found.append(f"command {number} showed a traceback: {one.said[-400:]!r}")
    return found


def problems_in(url: str) -> list[str]:
    """What is wrong in a database: configurations or trials twice, trials unlike measurements."""
    found = []
    storage = RDBStorage(url)
    with closing(Store(url)) as store:
        for study in store.studies():
            kept = [one.measurement for one in store.finished(study)]
            twice = [config for config, n in Counter(one.config for one in kept).items() if n > 1]
            if twice:
                found.append(f"{study.name} has configurations twice: {twice}")
            ours = [one.config.as_dict() for one in kept]
            optunas = _trials(storage, study)
            if optunas != list(enumerate(ours)):
                found.append(f"{study.name} has {len(ours)} measurements and trials {optunas}")
        found += [
            f"run {run.id} is {run.state}" for run in overview(store).runs if run.state == "running"
        ]
    storage.remove_session()
    storage.engine.dispose()
    return found


def _trials(storage: RDBStorage, study: StudyRecord) -> list[tuple[int, dict[str, int]]]:
    study_id = storage.get_study_id_from_name(study.name)
    trials = storage.get_all_trials(study_id, deepcopy=False)
    return [(trial.number, dict(trial.params)) for trial in trials]
