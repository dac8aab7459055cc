"""The command line: parse, call, print.

Nothing heavy is imported before a command needs it, so that ``autotune --help`` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.console import (
    err,
    out,
    print_benched,
    print_checked,
    print_findings,
    print_status,
    print_tuned,
    say,
    say_benched,
    say_compared,
    say_interrupted,
    say_recorded,
    watch_status,
)
from autotune.cli.flags import (
    LIMIT_FIELDS,
    MODEL_FIELDS,
    AsJson,
    CheckReplay,
    CheckStorage,
    CheckStudy,
    ComparedTrials,
    EffortName,
    Kernels,
    Lookahead,
    MaxLoras,
    Merge,
    ModelFlags,
    Op,
    Output,
    Plot,
    Port,
    Quiet,
    Rank,
    Record,
    Replay,
    RowsMax,
    Sample,
    Sampler,
    Samplers,
    Seed,
    Seeds,
    Storage,
    StudiesStorage,
    Study,
    TimeBudget,
    Tokens,
    Trials,
    Verbose,
    WarmStart,
    takes_model,
)
from autotune.errors import AutotuneError, InputError
from autotune.plan.study import StudyPlan

if TYPE_CHECKING:
    from autotune.choose.selection import Selection
    from autotune.cli.progress import RunProgress
    from autotune.launch.environment import Environment
    from autotune.launch.shape import KernelShape

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find the fastest launch configurations of vLLM's multi-LoRA Triton kernels.",
)

#: Where studies are looked for if no --storage says otherwise.
_DATABASE = "sqlite:///autotune.db"

EXIT_ERROR = 1
EXIT_CHECK_FAILED = 3
EXIT_INTERRUPTED = 130


# ------------------------------------------------------------------ the commands


@app.command()
@takes_model
def run(  # noqa: PLR0913 - one parameter a flag
    *,
    study: Study = None,
    max_loras: MaxLoras = None,
    rank: Rank = None,
    tokens: Tokens = None,
    op: Op = None,
    model: ModelFlags,
    trials: Trials = None,
    effort: EffortName = None,
    time_budget: TimeBudget = None,
    sampler: Sampler = None,
    warm_start: WarmStart = None,
    kernels: Kernels = None,
    replay: Replay = None,
    storage: Storage = None,
    output: Output = None,
    merge: Merge = False,
    record: Record = None,
    rows_max: RowsMax = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tune every shape, and write the files that vLLM loads."""
    from autotune.cli.live import RunDisplay, Verbosity
    from autotune.cli.progress import RunProgress
    from autotune.measure.cuda.gpu import has_gpu
    from autotune.measure.runners import gpu_runner, replay_runner
    from autotune.search.run import check_rows_max, run_job

    if replay and kernels:
        raise typer.BadParameter("--kernels contradicts --replay, whose kernels were recorded")
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict one another; give one of them")
    out.quiet = quiet
    with _errors():
        recorded = replay_runner(replay) if replay else None
        plan = _plan(study, None if recorded is None else recorded.shapes, model).override(
            max_loras=max_loras,
            rank=rank,
            tokens=tokens,
            ops=op,
            trials=trials,
            effort=effort,
            time_budget_s=time_budget,
            sampler=sampler,
            warm_start=warm_start,
            kernels=kernels,
            storage=storage,
            output=output,
            seed=seed,
        )
        check_rows_max(plan, rows_max)
        if recorded is None and not has_gpu():
            recorded = replay_runner(())
            plan = plan.answered_by(recorded.shapes)
            say(
                f"No GPU here: replaying the recording of a {recorded.environment.gpu} that comes "
                "with autotune; what is exported is for that GPU.",
                err if quiet else out,
            )
        progress = RunProgress(time_budget_s=plan.time_budget_s)
        with recorded or gpu_runner(plan.kernels, err.print) as runner, _kept(plan, progress):
            verbosity = Verbosity.of(quiet, verbose)
            with RunDisplay(
                out, progress, status=lambda: runner.status, verbosity=verbosity
            ) as display:
                done = run_job(
                    plan, runner, display.watch, say=say, record=record, rows_max=rows_max
                )
        print_tuned(done.tuned, plan, done.lines)
        _export([(done.environment, done.selections)], plan.output, merge=merge)


@app.command("record")
@takes_model
def record_spaces(  # noqa: PLR0913 - one parameter a flag
    *,
    study: Study = None,
    file: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The recording.")],
    max_loras: MaxLoras = None,
    rank: Rank = None,
    tokens: Tokens = None,
    op: Op = None,
    model: ModelFlags,
    sample: Sample = None,
    kernels: Kernels = None,
    seed: Seed = None,
) -> None:
    """Measure whole search spaces on the GPU, for replays without one."""
    from autotune.measure.runners import gpu_runner
    from autotune.measure.sweep import record

    with _errors():
        plan = _plan(study, None, model).override(
            max_loras=max_loras, rank=rank, tokens=tokens, ops=op, kernels=kernels, seed=seed
        )
        with gpu_runner(plan.kernels, err.print) as runner:
            record(
                runner,
                file,
                shapes=plan.shapes,
                axes=plan.axes,
                sample=sample,
                seed=plan.seed,
                progress=say_recorded,
            )
        out.print(f"Recorded {len(plan.shapes)} shapes in {file}")


@app.command()
@takes_model
def shapes(  # noqa: PLR0913 - one parameter a flag
    *,
    study: Study = None,
    max_loras: MaxLoras = None,
    rank: Rank = None,
    tokens: Tokens = None,
    op: Op = None,
    model: ModelFlags,
    replay: Replay = None,
    as_json: AsJson = False,
) -> None:
    """List the shapes, with the key under which vLLM looks each one up."""
    from autotune.cli.tables import shapes_table, studies_text
    from autotune.measure.runners import replay_runner
    from autotune.plan.effort import tuning_s

    with _errors():
        recorded = replay_runner(replay).shapes if replay else None
        plan = _plan(study, recorded, model).override(
            max_loras=max_loras, rank=rank, tokens=tokens, ops=op
        )
        layers, runs, notes = plan.layers, plan.runs, plan.notes
    if as_json:
        rows = [
            shape.as_dict()
            | {"layer": layer, "runs": runs[shape] or None}
            | {"file": shape.file_name("{gpu}"), "key": shape.lookup_key}
            for shape, layer in layers.items()
        ]
        out.print_json(json.dumps(rows))
        return
    out.print(shapes_table(layers, runs))
    out.print()
    if plan.is_auto:
        counts = ", ".join(map(str, dict.fromkeys(shape.num_tokens for shape in layers)))
        out.print(f"Batch sizes (m): {counts}; rows between them are added after tuning.")
    seconds = tuning_s(layers, plan.trials, between=len(plan.between))
    for line in (*notes, studies_text(len(layers), seconds, plan.trials)):
        out.print(line)


@app.command()
@takes_model
def bench(  # noqa: PLR0913 - one parameter a flag
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with vLLM's files.")],
    study: Study = None,
    max_loras: MaxLoras = None,
    rank: Rank = None,
    tokens: Tokens = None,
    op: Op = None,
    model: ModelFlags,
    kernels: Kernels = None,
    as_json: AsJson = False,
) -> None:
    """Time a folder's entries beside vLLM's defaults on the GPU.

    Without --tokens, token counts between the study's are timed too: vLLM takes the nearest entry.
    The exit code is 3 if an entry is slower than the default, or does not run.
    """
    from autotune.export.bench import bench as bench_plan
    from autotune.measure.runners import gpu_runner

    with _errors():
        plan = _plan(study, None, model).override(
            max_loras=max_loras, rank=rank, tokens=tokens, ops=op, kernels=kernels
        )
        with gpu_runner(plan.kernels, err.print) as runner:
            rows = bench_plan(
                plan,
                runner,
                folder,
                ceilings=runner.ceilings(),
                tokens_given=tokens is not None,
                progress=say_benched,
            )
    print_benched(rows, as_json=as_json)
    if any(row.is_slower for row in rows):
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def export(
    *,
    storage: StudiesStorage = _DATABASE,
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder for vLLM's files.")] = "tuned",
    merge: Merge = False,
) -> None:
    """Write vLLM's files again from what the studies chose."""
    from autotune.store.chosen import stored_selections

    with _errors():
        stored = stored_selections(storage)
        if not stored:
            raise InputError("the database holds no finished shape; tune one with autotune run")
        _export(stored, output, merge=merge)


@app.command()
def status(
    *,
    storage: StudiesStorage = _DATABASE,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell how far the studies of a database are, also while a run writes it."""
    from autotune.store import Store, overview

    if watch and as_json:
        raise typer.BadParameter("--watch contradicts --json; leave one of them out")
    with _errors(), closing(Store(storage, must_exist=True)) as store:
        seen = overview(store)
        if not seen.studies:
            raise InputError("the database holds no study; tune one with autotune run")
        if watch:
            watch_status(lambda: overview(store))
        else:
            print_status(seen, storage, as_json=as_json)


@app.command()
@takes_model
def check(  # noqa: PLR0913 - one parameter a flag
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with vLLM's files.")],
    study: CheckStudy = None,
    max_loras: MaxLoras = None,
    rank: Rank = None,
    tokens: Tokens = None,
    op: Op = None,
    model: ModelFlags,
    replay: CheckReplay = None,
    storage: CheckStorage = None,
    as_json: AsJson = False,
) -> None:
    """Tell what vLLM finds in a folder, and what is wrong there.

    With no study, recording or database, and no flag about shapes, the files alone are checked.
    The exit code is 3 if vLLM would stop, compute wrong numbers, or never read one of the files.
    """
    from autotune.export.check.survey import check as check_files

    if replay and storage:
        raise typer.BadParameter("--replay and --storage both name the shapes; give one of them")
    flags = (max_loras, rank, tokens, op, model.given(MODEL_FIELDS) or None)
    with _errors():
        known = _known_shapes(replay, storage)
        if not known and (study or any(flag is not None for flag in flags)):
            known = {None: None}
        plans = {
            gpu: _plan(study, shapes, model).override(
                max_loras=max_loras, rank=rank, tokens=tokens, ops=op
            )
            for gpu, shapes in known.items()
        }
        report = check_files(folder, {gpu: plan.shapes for gpu, plan in plans.items()})
        layers = {shape: names for plan in plans.values() for shape, names in plan.layers.items()}
    print_checked(report, layers, as_json=as_json)
    if report.has_errors:
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.command()
def report(
    *,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The studies' database; sqlite:///autotune.db if none."),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A recording, in place of a database; may be repeated."),
    ] = None,
    file: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page; report.html if none.")
    ] = Path("report.html"),
) -> None:
    """Write what was tuned, and the evidence, into one HTML page that needs no network."""
    from autotune.report.page import check_writable, write_report

    if replay and storage:
        raise typer.BadParameter("--replay and --storage both name what to show; give one of them")
    with _errors():
        check_writable(file)
        from autotune.report.gather import of_database, of_recordings

        found = of_recordings(replay) if replay else of_database(storage or _DATABASE)
        write_report(found, file)
    out.print(f"Wrote {file}")


@app.command()
def dashboard(
    *,
    storage: StudiesStorage = _DATABASE,
    host: Annotated[
        str, typer.Option(metavar="H", help="Address to listen on; whoever reaches it may edit.")
    ] = "127.0.0.1",
    port: Port = 8080,
) -> None:
    """Show the studies of a database in Optuna Dashboard, also while a run writes it."""
    with _errors(), suppress(KeyboardInterrupt):
        from autotune.search.dashboard.serve import serve_dashboard

        serve_dashboard(storage, host=host, port=port, say=err.print)


@app.command("compare-samplers")
def compare_samplers(  # noqa: PLR0913 - one parameter a flag
    *,
    replay: Replay = None,
    samplers: Samplers = None,
    trials: ComparedTrials = None,
    seeds: Seeds = None,
    lookahead: Lookahead = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Search recorded shapes with every sampler, and tell how soon each comes near the best.

    Without --replay the recording that comes with autotune is searched.
    """
    from autotune.cli.contest import LEGEND, comparison_table
    from autotune.measure.runners import replay_runners
    from autotune.report.plots.contest import write_comparison_plot
    from autotune.search.contest.compare import Comparison, compare, sampler_names
    from autotune.search.contest.curves import by_sampler, by_shape, summaries

    given = {"trials": trials, "seeds": seeds, "lookahead": lookahead}
    with _errors():
        comparison = Comparison(
            samplers=sampler_names(samplers),
            **{name: value for name, value in given.items() if value is not None},
        )
        curves = compare(replay_runners(replay or ()), comparison, progress=say_compared)
        if plot is not None:
            groups = {name: by_shape(those) for name, those in by_sampler(curves).items()}
            write_comparison_plot(groups, plot)
            err.print(f"Drew {plot}")
    if as_json:
        out.print_json(json.dumps(comparison.as_dict(summaries(curves))))
    else:
        out.print(comparison_table(summaries(curves)))
        out.print(LEGEND)


def main() -> None:
    """Entry point of the ``autotune`` command."""
    app()


# ------------------------------------------------------------------ shared by the commands


def _plan(
    study: Path | None, recorded: Sequence[KernelShape] | None, model: ModelFlags
) -> StudyPlan:
    """The study of a file, a model, a recording, or else the quick-start study.

    Of a recording's, ``--tokens auto`` asks for nothing that it does not hold.
    """
    if study is not None:
        plan = StudyPlan.read(study)
    elif model.config is not None:
        plan = StudyPlan.of_model(model.config)
    else:
        plan = StudyPlan.quickstart() if recorded is None else StudyPlan.of_shapes(recorded)
    plan = plan.with_model(model.given(MODEL_FIELDS), model.given(LIMIT_FIELDS))
    return plan if recorded is None else plan.answered_by(recorded)


def _known_shapes(
    replay: Sequence[Path] | None, storage: str | None
) -> dict[str | None, Sequence[KernelShape] | None]:
    """The shapes of a recording or a database by GPU; empty where neither is given."""
    from autotune.measure.runners import replay_runner
    from autotune.store.chosen import stored_selections

    if replay:
        recorded = replay_runner(replay)
        return {recorded.environment.gpu: recorded.shapes}
    found: dict[str, list[KernelShape]] = {}
    for environment, selections in stored_selections(storage) if storage else ():
        found.setdefault(environment.gpu, []).extend(each.shape for each in selections)
    if storage and not found:
        raise InputError("the database holds no finished shape; tune one with autotune run")
    return {gpu: tuple(dict.fromkeys(shapes)) for gpu, shapes in found.items()}


def _export(
    stored: Sequence[tuple[Environment, Sequence[Selection]]], folder: str, *, merge: bool
) -> None:
    """Write the files, and check what was written; exit code 3 where that finds an error."""
    from autotune.export import VllmExporter
    from autotune.export.check.survey import check_exported

    by_gpu: dict[str | None, list[KernelShape]] = {}
    written: dict[Path, None] = {}
    for environment, selections in stored:
        paths = VllmExporter().export(selections, environment, Path(folder), merge=merge)
        written |= dict.fromkeys(paths)
        by_gpu.setdefault(environment.gpu, []).extend(each.shape for each in selections)
    if not written:
        return
    for path in written:
        out.print(f"Wrote {path}")
    out.print(f"Give them to vLLM with VLLM_TUNED_CONFIG_FOLDER={Path(folder).resolve()}")
    report = check_exported(Path(folder), by_gpu)
    print_findings(report)
    if report.has_errors:
        raise typer.Exit(EXIT_CHECK_FAILED)


@contextmanager
def _errors() -> Iterator[None]:
    """One line and an exit code for whatever ends a command."""
    try:
        yield
    except AutotuneError as error:
        err.print("autotune:", " ".join(str(error).split()))
        raise typer.Exit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        err.print("autotune: interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _kept(plan: StudyPlan, progress: RunProgress) -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say_interrupted(plan, progress)
        raise typer.Exit(EXIT_INTERRUPTED) from None
