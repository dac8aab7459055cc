"""Engines of one vLLM, compared: by its defaults, with a folder, and by its defaults again."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from autotune.errors import InputError, WorkerDied
from autotune.serve.child import Child, program, stop_all
from autotune.serve.gains import Engine, Round, rows_of
from autotune.serve.http_client import OverHttp
from autotune.serve.installed import Installed
from autotune.serve.job import Case, Load, ServedModel

#: Names the folder of tuned files for vLLM.
FOLDER_VARIABLE = "VLLM_TUNED_CONFIG_FOLDER"

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
        numbers = {
            variant: number or f"{place}/{len(variants)}"
            for place, variant in enumerate(variants, start=1)
        }
        for variant, line in told_by(variants, served, load, setting):
            if variant.name not in engines:
                engines[variant.name] = Engine(name=variant.name)
            for text in _taken(engines[variant.name], line):
                setting.say(f"[{numbers[variant]}] {variant.name}: {text}")

    try:
        run(VARIANTS, load)
        if any(row.verdict == "slower" for row in rows_of(engines, load, {})):
            run([AGAIN], replace(load, at_once=False), "once more")
    finally:
        for name, engine in engines.items():
            log = setting.log(name).read_text(encoding="utf-8", errors="replace")
            engine.compiled = compiled_in(log)


def told_by(
    variants: Iterable[Variant],
    served: ServedModel,
    load: Load,
    setting: Setting,
    *,
    purpose: str = "",
    tells_tokens: bool = False,
) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Run engines, one after another or at once; what each tells, line by line.

    Args:
        variants: Which.
        served: The model.
        load: The requests.
        setting: Where the engines run.
        purpose: What is put before the names of their logs.
        tells_tokens: Whether tokens and their log-probabilities are wanted.

    Raises:
        WorkerDied: One ended before it had served every round.
    """
    engines = [
        _Server(variant, served, load, setting, log=setting.log(f"{purpose}{variant.name}"))
        for variant in variants
    ]
    if load.at_once:
        yield from _in_turns(engines, tells_tokens=tells_tokens)
        return
    for engine in engines:
        if load.over_http:
            yield from ((engine.variant, line) for line in engine.over_http())
            continue
        with engine.started(tells_tokens=tells_tokens) as (_, lines):
            yield from ((engine.variant, line) for line in lines)


def _in_turns(
    engines: Sequence[_Server], *, tells_tokens: bool
) -> Iterator[tuple[Variant, dict[str, Any]]]:
    """Start engines at once, and let each serve a round before any serves the next."""
    told: SimpleQueue[tuple[Variant, dict[str, Any] | WorkerDied]] = SimpleQueue()

    def take() -> tuple[Variant, dict[str, Any]]:
        """The next line of any engine, so that one that dies is heeded at once."""
        variant, line = told.get()
        if isinstance(line, WorkerDied):
            raise line
        return variant, line

    with ExitStack() as stack:
        children: list[Child] = []
        readers: list[Thread] = []
        for number, engine in enumerate(engines):
            started = engine.started(tells_tokens=tells_tokens, number=number)
            child, lines = stack.enter_context(started)
            reader = Thread(target=_pass_on, args=(engine.variant, lines, told), daemon=True)
            reader.start()
            children.append(child)
            readers.append(reader)
            stack.callback(_stop, tuple(children), tuple(readers))  # the last callback comes first
        ready = dict(take() for _ in children)
        yield from ((engine.variant, ready[engine.variant]) for engine in engines)
        for _ in engines[0].load.rounds():
            for child in children:
                child.go_on()
                yield take()


def _stop(children: Sequence[Child], readers: Sequence[Thread]) -> None:
    """Stop engines together, and wait for those who read what they tell."""
    stop_all(children)
    for reader in readers:
        reader.join()


def _pass_on(
    variant: Variant,
    lines: Iterator[dict[str, Any]],
    told: SimpleQueue[tuple[Variant, dict[str, Any] | WorkerDied]],
) -> None:
    """Put everything that an engine tells where it is waited for, and that it died."""
    try:
        for line in lines:
            told.put((variant, line))
    except WorkerDied as error:
        told.put((variant, error))


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
        self, *, tells_tokens: bool, number: int = 0
    ) -> Iterator[tuple[Child, Iterator[dict[str, Any]]]]:
        """The engine, and the lines that it tells; it is ended with the block."""
        job = self.served.job(self.load, has_lora=self.variant.has_lora, tells_tokens=tells_tokens)
        installed, env = self.setting.installed, self.setting.variables(self.variant, self.served)
        job["arguments"] = [*installed.tells_compiles, *job["arguments"]]
        if self.load.at_once:  # else two that start at the same moment may find the same port free
            first = os.environ.get("VLLM_PORT", "")
            first_port = int(first) if first.isdecimal() else _FIRST_PORT + os.getpid() % _PORTS
            env["VLLM_PORT"] = str(first_port + _PORTS * number)
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
