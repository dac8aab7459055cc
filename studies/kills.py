"""End runs of a replay at random moments, go on with each until it ends, and count what is lost.

    python studies/kills.py [--runs 100] [--seed 0]
    python studies/kills.py --postgres [--runs 20]
    python studies/kills.py --together [--postgres] [--runs 10]

Without --postgres the database is SQLite, and every run gets SIGKILL, SIGTERM, SIGHUP or SIGINT at
a random moment, again and again. With --postgres a server of our own is stopped in the middle of
each run and started again. The exit code is 1 if anything was lost, measured twice or exported
differently, and where an exit code, a traceback or a missing ending shows that a run did not end in
order.

With --together eight runs start at the same moment, on a new database or on that of the round
before, of one study or of several, and a third of them gets SIGKILL. Sometimes one is stopped
until others have taken over what it had, and goes on. All others must end with 0,
Optuna's trials must be the measurements kept, the runs of one study must write the same, and what
they write must pass ``check``.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from autotune.measure.replay import shipped_recording
from autotune.store import Store, overview
from autotune.store.runs import SILENT_S

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.postgres import PostgresServer  # noqa: E402 - the path above is needed for it
from tests.recordings import EXPAND, SHRINK, write_recording  # noqa: E402
from tests.together import problems_in, problems_of, run_at_once  # noqa: E402

#: Three shapes of the shipped recording: a few seconds of search.
RUN = (
    *("--replay", str(shipped_recording()), "--op", "expand", "--tokens", "16", "--seed", "3"),
    *("--trials", "120", "--verbose"),
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

#: A line of ``--verbose``: the trial's number, how it ended, and its configuration.
TRIAL = re.compile(r"^ +\d+  .*?  (\w+=\d+(?: \w+=\d+)*)$")

#: How often a run is killed at most, how long a server stays away, seconds, and how long one launch
#: may take at all, seconds.
MOST_KILLS, DOWN_S, LIMIT_S = 4, (0.2, 4.0), 600.0


@dataclass(slots=True)
class Found:
    """What was found, over all runs."""

    launches: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    printed_not_kept: int = 0
    different: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        wrong = self.lost + self.twice + self.printed_not_kept + self.different
        return not wrong and not self.problems

    def print(self) -> None:
        """Print it, a line each."""
        ends = ", ".join(f"{count} {name}" for name, count in sorted(self.signals.items()))
        print(f"launches: {self.launches}; signals: {ends or 'none'}")
        print(f"kept configurations that were lost: {self.lost}")
        print(f"kept configurations that were measured again: {self.twice}")
        print(f"printed and not kept: {self.printed_not_kept}")
        print(f"exported folders that differ from an undisturbed run's: {self.different}")
        print(f"wrong exit codes, tracebacks and endings: {len(self.problems)}")
        for problem in self.problems:
            print(f"  {problem}")


class Run:
    """One run: launched, ended and launched again until it ends by itself."""

    def __init__(self, folder: Path, url: str, found: Found) -> None:
        """Launch nothing yet."""
        folder.mkdir()
        self._folder, self._url, self._found = folder, url, found

    @property
    def files(self) -> Mapping[str, bytes]:
        """What was exported."""
        tuned = self._folder / "tuned"
        return {path.name: path.read_bytes() for path in sorted(tuned.iterdir())}

    def launch(
        self,
        *,
        sent: signal.Signals | None = None,
        after_s: float = 0.0,
        meanwhile: threading.Thread | None = None,
    ) -> bool:
        """Start the run or go on with it, and compare what it said with what is kept.

        Args:
            sent: A signal to send; None for none.
            after_s: When to send it, seconds.
            meanwhile: Started with the run; over before anything is compared.

        Returns:
            Whether the run is done.
        """
        before, last_run = self._kept(), self._last_run()
        process = self._start()
        if meanwhile is not None:
            meanwhile.start()
        if sent is not None:
            time.sleep(after_s)
            process.send_signal(sent)
            self._found.signals[sent.name] += 1
        out, err = process.communicate(timeout=LIMIT_S)
        if meanwhile is not None:
            meanwhile.join()
        self._compare(before, out)
        # A signal that comes before autotune is imported ends Python as it ends any program.
        if self._last_run() != last_run:
            self._judge(process.returncode, err, sent)
        return process.returncode == 0

    def _start(self) -> subprocess.Popen[str]:
        self._found.launches += 1
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "autotune", "run", *RUN, "--storage", self._url],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "250"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=take_notice,  # noqa: PLW1509 - it takes no lock
        )

    def _compare(self, before: Counter[str], out: str) -> None:
        found, kept = self._found, self._kept()
        printed = Counter(match[1] for line in out.splitlines() if (match := TRIAL.match(line)))
        not_kept = (printed - kept).total()
        found.lost += (before - kept).total()
        found.printed_not_kept += not_kept
        found.twice += (before + printed - kept).total() - not_kept - (before - kept).total()

    def _judge(self, code: int, err: str, sent: signal.Signals | None) -> None:
        problems = self._found.problems
        if sent is signal.SIGKILL and code == -sent:
            return
        if code not in {0, 0 if sent is None else 128 + sent}:
            problems.append(f"exit code {code} after {sent!r}: {err[-600:]!r}")
        if "Traceback" in err or "Exception ignored" in err:
            problems.append(f"a traceback after {sent!r}: {err[-600:]!r}")
        with self._store() as store:
            if overview(store).runs[0].state == "running":
                problems.append(f"no ending after {sent!r}")

    @contextmanager
    def _store(self) -> Iterator[Store]:
        with closing(Store(self._url)) as store:
            yield store

    def _kept(self) -> Counter[str]:
        """The configurations in the database, over all studies."""
        with self._store() as store:
            finished = [one for study in store.studies() for one in store.finished(study)]
        configs = [one.measurement.config.as_dict() for one in finished]
        return Counter(" ".join(f"{k}={v}" for k, v in config.items()) for config in configs)

    def _last_run(self) -> int:
        """The number of the latest launch that the database knows of; 0 for none."""
        with self._store() as store:
            return max((run.id for run in overview(store).runs), default=0)


def take_notice() -> None:
    """Heed signals, which a shell ignores for what it starts in the background."""
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)


def restart(server: PostgresServer, after_s: float, down_s: float) -> None:
    """Stop a server, and start it again."""
    time.sleep(after_s)
    server.stop()
    time.sleep(down_s)
    server.start()


def disturbed(
    run: Run, chance: random.Random, length_s: float, server: PostgresServer | None
) -> None:
    """One run that is ended at random moments, or whose server restarts, until it ends well.

    Args:
        run: The run, not launched yet.
        chance: Chooses the signals and the moments.
        length_s: How long a run takes that nothing disturbs, seconds.
        server: A server to restart; None to send signals.
    """
    if server is not None:
        times = chance.uniform(0.4, 0.9) * length_s, chance.uniform(*DOWN_S)
        if run.launch(meanwhile=threading.Thread(target=restart, args=(server, *times))):
            return
    else:
        for _ in range(chance.randint(1, MOST_KILLS)):
            if run.launch(sent=chance.choice(SIGNALS), after_s=chance.uniform(0.0, length_s)):
                return
    if not run.launch():
        raise SystemExit("a run that nothing disturbs does not end well")


#: How many runs start at once, how many of them are killed, and until when, seconds.
WORKERS, KILLED, KILLED_UNTIL_S = 8, 3, 8.0

#: In which share of the rounds one run is stopped, and for how long, seconds: so long that others
#: take over what it has.
STOPPED, STOPPED_S = 0.4, 2 * SILENT_S

#: The flags of studies that share shapes.
STUDIES = (
    ("--trials", "9"),
    ("--trials", "12", "--op", "shrink"),
    ("--effort", "quick", "--op", "expand"),
    ("--trials", "7", "--sampler", "tpe", "--tokens", "16,32"),
)


class Together:
    """Rounds of runs that start at the same moment on one database."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        """Begin with no database."""
        self._folder, self._chance = folder, chance
        self._recording = write_recording(
            folder / "r.jsonl.gz",
            *(kind | {"num_tokens": n} for kind in (SHRINK, EXPAND) for n in (16, 32, 64)),
        )
        self.killed = self.stopped = self.ended = 0
        self.problems: list[str] = []

    def round(self, url: str, number: int) -> None:
        """Start the runs, kill some, and look at what is left."""
        chance, folder = self._chance, self._folder / f"round{number}"
        folder.mkdir()
        is_one = chance.random() < 0.5
        flags = [STUDIES[0 if is_one else n % len(STUDIES)] for n in range(WORKERS)]
        killed = chance.sample(range(WORKERS), KILLED)
        sent = [(chance.uniform(0, KILLED_UNTIL_S), n, signal.SIGKILL) for n in killed]
        if chance.random() < STOPPED:
            stopped = chance.choice([n for n in range(WORKERS) if n not in killed])
            at_s = chance.uniform(0, KILLED_UNTIL_S)
            sent += [(at_s, stopped, signal.SIGSTOP), (at_s + STOPPED_S, stopped, signal.SIGCONT)]
            self.stopped += 1
        ended = run_at_once(
            [self._run(url, f"tuned-{n}", *each) for n, each in enumerate(flags)],
            folder,
            signals=sent,
        )
        alive = [n for n, one in enumerate(ended) if one.code == 0]
        self.killed += sum(one.code == -signal.SIGKILL for one in ended)
        self.ended += len(alive)
        found = problems_of(ended, killed) + problems_in(url)
        (again,) = run_at_once([self._run(url, "again", *flags[0])], folder)
        found += problems_of([again])
        folders = [folder / f"tuned-{n}" for n in alive]
        if is_one and len({self._written(each) for each in (*folders, folder / "again")}) > 1:
            found.append("the runs of one study wrote different files")
        checks = [("check", each.name, "--storage", url) for each in folders[:1]]
        found += problems_of(run_at_once(checks, folder))
        self.problems += [f"round {number}: {each}" for each in found]

    def _run(self, url: str, output: str, *flags: str) -> list[object]:
        given = ["run", "--replay", self._recording, "--storage", url, "--output", output]
        return [*given, *flags]

    def _written(self, folder: Path) -> tuple[tuple[str, bytes], ...]:
        return tuple((path.name, path.read_bytes()) for path in sorted(folder.glob("*.json")))


def run_together(count: int, chance: random.Random, server: PostgresServer | None) -> bool:
    """Rounds of runs that start at the same moment; returns whether all is well."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder, url, databases = Path(name), "", 0
        together = Together(folder, chance)
        for number in range(count):
            if not url or chance.random() < 0.5:
                databases += 1
                file = folder / f"{databases}.db"
                url = f"sqlite:///{file}" if server is None else server.new_database()
            together.round(url, number)
            print(f"{number + 1} of {count} rounds", end="\r", file=sys.stderr)
    print(f"rounds: {count}, of {WORKERS} runs each; databases: {databases}")
    print(f"runs that were killed: {together.killed}; stopped for a while: {together.stopped}")
    print(f"runs that ended with 0: {together.ended}")
    print(f"problems: {len(together.problems)}")
    for problem in together.problems:
        print(f"  {problem}")
    return not together.problems


def main() -> None:
    """Run all of it, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, help="how many runs; 100, or 20 with --postgres, or 10 --together"
    )
    parser.add_argument("--postgres", action="store_true", help="use a PostgreSQL server")
    parser.add_argument("--together", action="store_true", help="start eight runs at once")
    parser.add_argument("--seed", type=int, default=0, help="chooses the signals and the moments")
    given = parser.parse_args()
    count = given.runs or (20 if given.postgres else 100)
    chance, found = random.Random(given.seed), Found()  # noqa: S311 - nothing is kept secret by it
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
        server = opened.enter_context(PostgresServer()) if given.postgres else None
        if given.together:
            raise SystemExit(0 if run_together(given.runs or 10, chance, server) else 1)

        def new_run(name: str) -> Run:
            url = "sqlite:///autotune.db" if server is None else server.new_database()
            place = folder / name
            return Run(place, url.replace("///", f"///{place}/") if server is None else url, found)

        undisturbed, begun_s = new_run("undisturbed"), time.monotonic()
        undisturbed.launch()
        length_s = time.monotonic() - begun_s
        for number in range(count):
            run = new_run(f"run{number}")
            disturbed(run, chance, length_s, server)
            found.different += run.files != undisturbed.files
            print(f"{number + 1} of {count} runs", end="\r", file=sys.stderr)
    print(f"runs: {count}, of {length_s:.1f} s each where nothing disturbs them")
    found.print()
    raise SystemExit(0 if found.is_clean else 1)


if __name__ == "__main__":
    main()
