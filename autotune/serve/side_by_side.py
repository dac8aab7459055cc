"""Engines of one vLLM, compared: by its defaults, with a folder, and by its defaults again."""

from __future__ import annotations

import importlib.resources
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from autotune.errors import GpuMissing, InputError, KernelsUnusable, printable
from autotune.export.names import prefixes_in
from autotune.launch.op import gpu_file_prefix
from autotune.launch.release import is_since
from autotune.serve.child import Child, environment, started
from autotune.serve.gains import Engine, Round, rows_of
from autotune.serve.http_client import OverHttp
from autotune.serve.job import Case, Load, ServedModel

#: Names the folder of tuned files for vLLM.
FOLDER_VARIABLE = "VLLM_TUNED_CONFIG_FOLDER"

#: The first release whose monitor of compiles can tell each one, and not only the first of a kind.
_TELLS_EACH = "0.26"

#: What vLLM's monitor of compiles logs (``jit_monitor.py``, 0.22.1 to 0.33.0).
_MONITOR = re.compile(r"JIT monitor activated")
_COMPILED = re.compile(r"(?:compilation|autotuning|compile)[^\n]*? during inference: (\w+)")

#: Where engines that start at once look for free ports, and how far apart.
_FIRST_PORT, _PORTS = 21_000, 1_000

#: Prints a line of progress.
Say = Callable[[str], None]


class Variant(NamedTuple):
    """One engine of those that are compared."""

    name: str
    has_folder: bool
    has_lora: bool


#: In the order in which they run. What the two with defaults differ by is not the folder's doing.
VARIANTS = (
    Variant("default", has_folder=False, has_lora=True),
    Variant("folder", has_folder=True, has_lora=True),
    Variant("default again", has_folder=False, has_lora=True),
    Variant("no LoRA", has_folder=False, has_lora=False),
)

#: Runs where the folder seems to be slower: it is only where it is both times.
AGAIN = Variant("folder again", has_folder=True, has_lora=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The vLLM that is compared.

    Attributes:
        python: The interpreter that it is installed for.
        release: Its version.
        platform: What it was built for: ``cuda``, or ``cpu``.
        gpu: The GPU's name; empty where there is none.
        gpus: How many there are.
    """

    python: str
    release: str
    platform: str
    gpu: str
    gpus: int

    @property
    def tells_compiles(self) -> list[str]:
        """The flag that has vLLM log every compile, where the release has one."""
        return ["--jit-monitor-verbose"] if is_since(self.release, _TELLS_EACH) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where servers run.

    Attributes:
        installed: The vLLM that serves.
        folder: The folder of tuned files.
        scratch: For weights and logs.
        say: Called with every figure as it comes.
    """

    installed: Installed
    folder: Path
    scratch: Path
    say: Say

    def log(self, name: str) -> Path:
        """The log of a program."""
        return self.scratch / f"{name.replace(' ', '-')}.log"

    def variables(self, variant: Variant, served: ServedModel) -> dict[str, str]:
        """What a variant's environment has beside that of this process."""
        tuned = {FOLDER_VARIABLE: str(self.folder.absolute())} if variant.has_folder else {}
        return {**served.variables, **tuned}


def installed_at(python: str | None, scratch: Path) -> Installed:
    """Ask an interpreter which vLLM it has, and which GPUs.

    Args:
        python: The interpreter; None for this one.
        scratch: For its log.

    Raises:
        KernelsUnusable: It has no vLLM, or one that cannot be imported.
        GpuMissing: There is no GPU.
        InputError: It cannot be started.
    """
    python = sys.executable if python is None else python
    name = f"asking {printable(python)} for vLLM"
    with program(python, "engine_program", name=name, log=scratch / "asked.log") as child:
        child.give({"probe": True})
        answer: dict[str, Any] = {}
        for line in child.lines():
            answer |= line.get("installed", {})
    if not answer.get("release"):
        raise KernelsUnusable(
            f"vLLM is not installed for {printable(python)}, and --server runs it: pip install "
            "vllm there, or name the Python that has it with --python"
        )
    found = Installed(python=python, **answer)
    if found.platform != "cpu" and not found.gpus:
        raise GpuMissing(
            f"no CUDA GPU here that vLLM {found.release} could serve with: run this where there "
            "is one"
        )
    return found


def gpus_of(folder: Path) -> list[str]:
    """The GPUs that a folder has files for, by the prefixes of these.

    Raises:
        InputError: There is no such folder, or it has no file that vLLM reads.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {printable(str(folder))}: give the one that autotune run wrote"
        )
    prefixes = prefixes_in(folder)
    if not prefixes:
        raise InputError(
            f"{printable(str(folder))} has no file that vLLM reads: give the folder that autotune "
            "run wrote"
        )
    return prefixes


def check_folder(folder: Path, installed: Installed, *, gpus: int) -> str | None:
    """Refuse a folder that the servers would not read; what is to be said of it, else.

    Args:
        folder: The folder of tuned files.
        installed: What serves.
        gpus: How many GPUs a server needs.

    Raises:
        InputError: As ``gpus_of``, or it is for other GPUs, or there are too few GPUs.
    """
    prefixes = gpus_of(folder)
    if not installed.gpu:
        return (
            f"vLLM {installed.release} is built for CPUs, where it reads no folder: this shows how "
            "far two servers that are alike differ."
        )
    if gpus > installed.gpus:
        raise InputError(f"--tp needs {gpus} GPUs: there are {installed.gpus} here")
    if gpu_file_prefix(installed.gpu) not in prefixes:
        raise InputError(
            f"{printable(str(folder))} is for {', '.join(map(printable, prefixes))}: vLLM would "
            f"read nothing of it on {printable(installed.gpu)}, which is here"
        )
    return None


def run_engines(
    served: ServedModel, load: Load, setting: Setting, engines: dict[str, Engine]
) -> None:
    """Run every variant, one process each, one after another or at once.

    Where the folder is slower in some case, it runs a second time.

    Args:
        served: The model.
        load: The requests.
        setting: Where the engines run.
        engines: Gets each by its name; what was timed before an error is there, too.

    Raises:
        WorkerDied: An engine ended early; the message has the end of its log.
        InputError: The requests of a case never ran all at once.
    """

    def run(variants: Sequence[Variant], load: Load, number: str | None = None) -> None:
        for variant, line in told_by(variants, served, load, setting):
            engine = engines.setdefault(variant.name, Engine(name=variant.name))
            which = number or f"{list(engines).index(variant.name) + 1}/{len(variants)}"
            for text in _taken(engine, line):
                setting.say(f"[{which}] {variant.name}: {text}")
        for variant in variants:
            log = setting.log(variant.name).read_text(encoding="utf-8", errors="replace")
            engines[variant.name].compiled = compiled_in(log)

    run(VARIANTS, load)
    if any(row.verdict == "slower" for row in rows_of(engines, load.cases, {})):
        run([AGAIN], replace(load, at_once=False), "once more")


def told_by(
    variants: Iterable[Variant],
    served: ServedModel,
    load: Load,
    setting: Setting,
    *,
    purpose: str = "",
    **more: Any,  # noqa: ANN401 - as the job's
) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Run engines, one after another or at once; what each tells, line by line.

    Args:
        variants: Which.
        served: The model.
        load: The requests.
        setting: Where the engines run.
        purpose: What is put before the names of their logs.
        more: What jobs have beside what ``served`` puts in.

    Raises:
        WorkerDied: One ended before it had served every round.
    """
    engines = [
        _Server(variant, served, load, setting, log=setting.log(f"{purpose}{variant.name}"))
        for variant in variants
    ]
    if load.at_once:
        yield from _in_turns(engines, more)
        return
    for engine in engines:
        if load.over_http:
            yield from ((engine.variant, line) for line in engine.over_http())
            continue
        with engine.started(more) as (_, lines):
            yield from ((engine.variant, line) for line in lines)


def _in_turns(
    engines: Sequence[_Server], more: Mapping[str, Any]
) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Start engines at once, and let each serve a round before any serves the next."""
    with ExitStack() as stack:
        started = [
            (engine, *stack.enter_context(engine.started(more, number=number)))
            for number, engine in enumerate(engines)
        ]
        for engine, _, lines in started:
            yield engine.variant, next(lines)
        for _ in engines[0].load.rounds():
            for engine, child, lines in started:
                child.go_on()
                yield engine.variant, next(lines)


@dataclass(frozen=True, slots=True)
class _Server:
    """One engine, or one server over HTTP, that can be started."""

    variant: Variant
    served: ServedModel
    load: Load
    setting: Setting
    log: Path

    @property
    def _name(self) -> str:
        return f"the server ({self.variant.name})"

    @contextmanager
    def started(
        self, more: Mapping[str, Any], *, number: int = 0
    ) -> Iterator[tuple[Child, Iterator[dict[str, Any]]]]:
        """The engine, and the lines that it tells; it is ended with the block."""
        job = {**self.served.job(self.load, has_lora=self.variant.has_lora), **more}
        installed, env = self.setting.installed, self.setting.variables(self.variant, self.served)
        job["arguments"] = [*installed.tells_compiles, *job["arguments"]]
        if self.load.at_once:  # else two that start at the same moment may find the same port free
            env["VLLM_PORT"] = str(_FIRST_PORT + _PORTS * number + os.getpid() % _PORTS)
        started = program(
            installed.python, "engine_program", name=self._name, log=self.log, env=env
        )
        with started as child:
            child.give(job, is_all=not self.load.at_once)
            yield child, _lines_of(child, rounds=len(job["rounds"]))

    def over_http(self) -> Iterator[dict[str, Any]]:
        """Run the server to its end; the lines as an engine tells them."""
        server = OverHttp(
            python=self.setting.installed.python,
            served=self.served,
            load=self.load,
            has_lora=self.variant.has_lora,
            log=self.log,
        )
        env = self.setting.variables(self.variant, self.served)
        return server.told(name=self._name, more=self.setting.installed.tells_compiles, env=env)


def _lines_of(child: Child, *, rounds: int) -> Iterator[dict[str, Any]]:
    """What an engine tells, which has to be all of its rounds."""
    for line in child.lines():
        rounds -= "served" in line
        yield line
    if rounds:
        raise child.died("it served only some of the requests")


def compiled_in(log: str) -> dict[str, int] | None:
    """By kernel, how often a log says that one was compiled while requests were served.

    Returns:
        None where the release has no monitor of compiles.
    """
    if not _MONITOR.search(log):
        return None
    return dict(Counter(_COMPILED.findall(log)))


def _taken(engine: Engine, line: dict[str, Any]) -> Iterator[str]:
    """Take what an engine tells, and say it."""
    if "ready" in line:
        engine.start_s = line["ready"]["start_s"]
        yield f"started in {engine.start_s:.0f} s"
    if "served" not in line:
        return
    told = line["served"]
    case = Case(told["input"], told["output"], told["requests"])
    if case not in engine.rounds:  # the first round warms up
        engine.rounds[case] = []
        return
    if told["step_s"] is None:
        raise InputError(
            f"{case.requests} requests never ran at once: the server has room for fewer; give a "
            "smaller --requests, a larger --output or a larger --max-num-seqs"
        )
    served = Round(
        step_s=told["step_s"],
        tokens_per_s=told["output_tokens"] / told["whole_s"],
        ttft_s=told["ttft_s"],
        itl_s=told["itl_s"],
    )
    engine.rounds[case].append(served)
    step_ms, per_s = 1e3 * served.step_s, served.tokens_per_s
    yield f"{case}: {step_ms:.2f} ms a step, {per_s:.0f} tokens a second"


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
