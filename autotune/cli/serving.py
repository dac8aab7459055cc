"""``autotune bench --server``: runs the servers, and prints what the folder gains in them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.cli.console import err, out, say
from autotune.cli.exits import errors_in_one_line

if TYPE_CHECKING:
    from rich.table import Table

    from autotune.cli.server_flags import ServerFlags
    from autotune.cli.shape_flags import ShapeFlags
    from autotune.plan.study import StudyPlan
    from autotune.serve.gains import Engine, Predicted, Row
    from autotune.serve.installed import Installed
    from autotune.serve.job import Load, ServedModel
    from autotune.serve.outputs import Compared
    from autotune.serve.side_by_side import Setting

#: As many as the tables of ``docs/results.md`` have.
_REQUESTS = (1, 8, 16, 32, 64, 128)

#: Tokens of a prompt, and tokens that each request gets: 128 steps are timed.
_INPUT, _OUTPUT = 64, 144

#: Said of servers that start one after another.
_FIRST = " The first fills vLLM's and Triton's caches."

#: Enough for a median; each is as long as the output is.
_REPEATS = 3


@dataclass(slots=True, kw_only=True)
class Found:
    """What the servers did, so far.

    Attributes:
        served: The model.
        installed: The vLLM that served it.
        load: The requests.
        predicted: By number of requests, what the kernels' times say of a step.
        engines: The servers, by their names.
        outputs: What they computed, beside float32.
        is_complete: Whether all was done.
    """

    served: ServedModel
    installed: Installed
    load: Load
    predicted: Mapping[int, Predicted]
    engines: dict[str, Engine] = field(default_factory=dict)
    outputs: list[Compared] = field(default_factory=list)
    is_complete: bool = False

    @property
    def rows(self) -> list[Row]:
        """The cases that can be compared."""
        from autotune.serve.gains import rows_of

        return rows_of(self.engines, self.load, self.predicted)

    @property
    def is_sound(self) -> bool:
        """Whether the folder is slower nowhere, and nowhere wrong."""
        is_right = all(each.verdict != "wrong" for each in self.outputs)
        return is_right and all(row.verdict != "slower" for row in self.rows)


def bench_server(
    folder: Path, flags: ShapeFlags, given: ServerFlags, *, after: Sequence[str], as_json: bool
) -> bool:
    """Run the servers and print what they did; whether the folder is slower and wrong nowhere."""
    with errors_in_one_line():
        from autotune.errors import ExportError
        from autotune.files import try_file
        from autotune.report.plots.servers import write_servers_plot

        if given.plot is not None:
            try_file(given.plot, ExportError, advice="name another file with --plot")
        with _scratch() as scratch:
            found = _found(folder, flags, given, after, scratch, as_json=as_json)
        if given.plot is not None:
            write_servers_plot(curves_of(found.rows), given.plot)
            say(f"Drew {given.plot}", err)
    _show(found, as_json=as_json)
    return found.is_sound


def _show(found: Found, *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(as_document(found)))
    else:
        _print(found)


def _found(
    folder: Path,
    flags: ShapeFlags,
    given: ServerFlags,
    after: Sequence[str],
    scratch: Path,
    *,
    as_json: bool,
) -> Found:
    """Run the servers; if they end early, what can be compared is printed."""
    from autotune.errors import ExportError
    from autotune.files import write_errors
    from autotune.serve.installed import check_folder, gpus_of, installed_at
    from autotune.serve.job import check_asked
    from autotune.serve.predicted import predicted_in
    from autotune.serve.side_by_side import Setting

    plan, load = flags.plan(), _load(given)
    gpus_of(folder)  # before vLLM is imported, which takes a while
    check_asked(plan, load, after)
    installed = installed_at(given.python, scratch)
    plan = _of_release(plan, installed.release)
    note = check_folder(folder, installed, gpus=plan.model.tensor_parallel if plan.model else 1)
    if note:
        say(f"autotune: {note}", err)
    with write_errors(scratch, ExportError, advice="name a larger place with TMPDIR"):
        served = _served(plan, load, given, after, scratch)
    predicted = predicted_in(folder, installed.gpu, plan) if installed.gpu else {}
    setting = Setting(
        installed=installed, folder=folder, scratch=scratch, say=lambda text: say(text, err)
    )
    found = Found(served=served, installed=installed, load=load, predicted=predicted)
    try:
        _run(found, plan if given.check_outputs else None, setting)
    except BaseException:
        if found.rows:
            with suppress(OSError):  # what went wrong is to be said, too
                _show(found, as_json=as_json)
        raise
    found.is_complete = True
    return found


def _run(found: Found, checked: StudyPlan | None, setting: Setting) -> None:
    """Run the servers, and compare their outputs if there is a plan for that."""
    from autotune.errors import ExportError
    from autotune.files import write_errors
    from autotune.serve.outputs import check_outputs
    from autotune.serve.side_by_side import run_engines

    run_engines(found.served, found.load, setting, found.engines)
    if checked is not None:
        with write_errors(setting.scratch, ExportError, advice="name a larger place with TMPDIR"):
            found.outputs += check_outputs(checked, found.served, found.load, setting)


def _load(given: ServerFlags) -> Load:
    from autotune.serve.job import Load

    return Load(
        requests=tuple(given.requests or _REQUESTS),
        inputs=tuple(given.input or (_INPUT,)),
        outputs=tuple(given.output or (_OUTPUT,)),
        repeats=given.repeats or _REPEATS,
        over_http=given.http,
        at_once=given.at_once,
    )


def _served(
    plan: StudyPlan, load: Load, given: ServerFlags, after: Sequence[str], scratch: Path
) -> ServedModel:
    """The model, with its adapters written, and a tokenizer for a client that sends text."""
    from autotune.serve.http_client import write_tokenizer
    from autotune.serve.job import ServedModel

    served = ServedModel.of(plan, scratch, load, after=after, has_weights=given.weights)
    if not given.http or given.weights:
        return served
    return replace(served, tokenizer=write_tokenizer(scratch / "tokenizer", served.vocabulary))


def _print(found: Found) -> None:
    for number, table in enumerate(servers_tables(found.rows, out.width)):
        if number:
            out.print()
        out.print(table)
    for line in lines_of(found.engines, found.rows, at_once=found.load.at_once):
        say(line)
    if not found.is_complete:
        say(f"Ended early: {len(found.rows)} of {len(found.load.cases)} rows can be compared.")
    if found.outputs:
        out.print()
        out.print(outputs_table(found.outputs))
        say(outputs_line(found.outputs))


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for adapters and logs, of which the logs stay where a server dies."""
    from autotune.errors import WorkerDied

    with tempfile.TemporaryDirectory(prefix="autotune-server-") as folder:
        scratch = Path(folder)
        try:
            yield scratch
        except WorkerDied as error:
            kept = Path(tempfile.mkdtemp(prefix="autotune-server-logs-"))
            for log in scratch.glob("*.log"):
                log.rename(kept / log.name)
            raise WorkerDied(str(error).replace(folder, str(kept))) from error


def _of_release(plan: StudyPlan, release: str) -> StudyPlan:
    """The plan for the release that serves, unless a flag names another."""
    from autotune.errors import InputError
    from autotune.plan.study import StudyPlan

    if plan.model is None:
        return plan
    if plan.model.vllm not in (None, release):
        raise InputError(
            f"--vllm says another release than the one that serves: got {plan.model.vllm} beside "
            f"{release}; leave --vllm out, or name the Python that has it with --python"
        )
    assert isinstance(plan, StudyPlan)  # noqa: S101 - for type checkers
    return replace(plan, model=replace(plan.model, vllm=release))


# ------------------------------------------------------------------ what is printed


def servers_tables(rows: Iterable[Row], width: int) -> list[Table]:
    """One row a case: a step by each server, and what the folder gains.

    Args:
        rows: The cases.
        width: Columns of the terminal; one that is narrow gets several tables.
    """
    from autotune.cli.tables import tables_within

    shown = list(rows)
    has_sizes = len({(row.case.input, row.case.output) for row in shown}) > 1
    has_predicted = any(row.predicted is not None for row in shown)
    keys = ("requests", "in", "out") if has_sizes else ("requests",)
    names = (
        *keys,
        *("no LoRA ms", "defaults ms", "folder ms"),
        *("tokens a second", "gain", "verdict", "saved ms"),
        *(("predicted ms",) if has_predicted else ()),
        *("first token ms", "between tokens, 99 % ms"),
    )
    cells = [_cells(row, has_sizes=has_sizes, has_predicted=has_predicted) for row in shown]
    return tables_within(width, names, cells, keys=len(keys))


def _cells(row: Row, *, has_sizes: bool, has_predicted: bool) -> list[str]:
    case, old, new = row.case, row.default, row.folder
    return [
        str(case.requests),
        *([str(case.input), str(case.output)] if has_sizes else []),
        f"{row.no_lora.step_ms:.2f}" if row.no_lora else "",
        f"{old.step_ms:.2f}, {row.again.step_ms:.2f}",
        ", ".join(f"{each.step_ms:.2f}" for each in (new, row.folder_again) if each),
        f"{(old.tokens_per_s + row.again.tokens_per_s) / 2:.0f} -> {new.tokens_per_s:.0f}",
        gain_text(row),
        row.verdict,
        f"{row.saved_ms:.2f}",
        *([predicted_text(row)] if has_predicted else []),
        f"{old.ttft_ms:.1f} -> {new.ttft_ms:.1f}",
        f"{old.itl_p99_ms:.2f} -> {new.itl_p99_ms:.2f}",
    ]


def curves_of(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """By server, and by sizes where there are several, its tokens a second over requests."""
    has_sizes = len({(row.case.input, row.case.output) for row in rows}) > 1
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        sizes = f", {row.case.input} in, {row.case.output} out" if has_sizes else ""
        engines = {
            "no LoRA": row.no_lora,
            "default": row.default,
            "default again": row.again,
            "folder": row.folder,
        }
        for name, figures in engines.items():
            if figures is not None:
                point = (row.case.requests, figures.tokens_per_s)
                curves.setdefault(name + sizes, []).append(point)
    return curves


def gain_text(row: Row) -> str:
    """What the folder gains over the faster and the slower default, such as ``+29 to +38 %``."""
    low, high = (f"{100 * gain:+.0f}" for gain in row.gains)
    return f"{low} %" if low == high else f"{low} to {high} %"


def predicted_text(row: Row) -> str:
    """What the kernels' times say is saved, with a mark where the server saves something else."""
    if row.predicted is None:
        return ""
    return f"{row.predicted.saved_ms:.2f}{'' if row.is_as_predicted else ' (!)'}"


def lines_of(engines: Mapping[str, Engine], rows: Sequence[Row], *, at_once: bool) -> list[str]:
    """What is said below the table."""
    starts = ", ".join(f"{name} {each.start_s:.0f} s" for name, each in engines.items())
    lines = [
        f"Started in: {starts}.{'' if at_once else _FIRST}",
        *(compiled_line(engine) for engine in engines.values() if engine.name == "folder"),
    ]
    if any(row.is_as_predicted is False for row in rows):
        lines.append(
            "(!) The server saves more or less than its kernels' times say, by more than 10 %."
        )
    waiting = [row for row in rows if row.waits_for_processor]
    if waiting:
        cases = ", ".join(str(row.case.requests) for row in waiting)
        lines.append(
            f"At {cases} request{'' if cases == '1' else 's'} LoRA adds less to a step than its "
            "kernels take: the GPU waits for the processor, which hides what they save."
        )
    counts = {word: sum(row.verdict == word for row in rows) for word in ("faster", "same")}
    slower = len(rows) - sum(counts.values())
    return [*lines, f"{counts['faster']} faster, {counts['same']} same, {slower} slower"]


def compiled_line(engine: Engine) -> str:
    """How many kernels were compiled while the engine served."""
    if engine.compiled is None:
        return (
            "vLLM did not tell what it compiled while it served: releases before 0.21 do not, nor "
            "does a vLLM for CPUs."
        )
    kernels = ", ".join(f"{name} ({count})" for name, count in engine.compiled.items())
    return f"Compiled while serving with the {engine.name}: {kernels or 'nothing'}"


def outputs_table(outputs: Iterable[Compared]) -> Table:
    """One row a number of requests: how far each server is from a computation in float32."""
    from autotune.cli.tables import plain_table

    table = plain_table((), ("requests", "adapters change", "defaults off by", "folder", "outputs"))
    for each in outputs:
        table.add_row(
            str(each.requests),
            f"{each.effect:.4f}",
            f"{each.default:.4f}, {each.again:.4f}",
            f"{each.folder:.4f}",
            each.verdict,
        )
    return table


def outputs_line(outputs: Sequence[Compared]) -> str:
    """What the table of outputs says."""
    wrong = [str(each.requests) for each in outputs if each.verdict == "wrong"]
    if wrong:
        noun = "request" if wrong == ["1"] else "requests"
        return (
            f"With the folder the server computes wrong numbers at {', '.join(wrong)} {noun}: "
            "autotune check names entries that are wrong; else tune again."
        )
    if any(each.verdict == "unknown" for each in outputs):
        return "Where it says unknown, the defaults are too far off to judge the folder by."
    return (
        "Root mean square of the difference of log-probabilities from float32's: the folder's are "
        "as near as the defaults'."
    )


def as_document(found: Found) -> dict[str, Any]:
    """Everything that was measured, JSON-ready."""
    return {
        "model": found.served.name,
        "vllm": found.installed.release,
        "gpu": found.installed.gpu,
        "engines": [
            {"name": each.name, "start_s": round(each.start_s, 2), "compiled": each.compiled}
            for each in found.engines.values()
        ],
        "rows": [row.as_dict() for row in found.rows],
        "outputs": [each.as_dict() for each in found.outputs],
        "is_complete": found.is_complete,
    }
