"""Many commands at the same moment, some of which are killed, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import RDBStorage

from autotune.store import Store, StudyRecord, overview
from tests.cli.command import environment
from tests.forks import forks
from tests.patience import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    said: str


def run_at_once(
    commands: Sequence[Sequence[object]],
    folder: Path,
    *,
    signals: Iterable[tuple[float, int, int]] = (),
) -> list[Ended]:
    """Start commands at the same moment, and run them to their ends, all in one folder.

    Args:
        commands: What follows ``autotune``, of each.
        folder: Where they run.
        signals: When to send a signal (seconds from the start), the number of the command, and
            the signal.
    """
    logs = [folder / f"said-{number}" for number in range(len(commands))]
    variables, running = environment(), []
    for command, log in zip(commands, logs, strict=True):
        with Path(os.devnull).open() as nothing, log.open("w") as said:
            files = (nothing.fileno(), said.fileno(), said.fileno())
            running.append(forks().start(command, folder, variables, files=files))
    begun_s = time.monotonic()
    for after_s, number, sent in sorted(signals):
        time.sleep(max(0.0, begun_s + after_s - time.monotonic()))
        running[number].send_signal(sent)
    codes = [process.wait(PATIENCE_S) for process in running]
    return [Ended(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]


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
