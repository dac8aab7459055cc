"""The commands: what each one's flags are, what it calls, and how it ends.

Nothing heavy is imported before a command needs it, so that ``autotune --help`` is quick.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import typer

from autotune.cli.benching import bench
from autotune.cli.configs import configs
from autotune.cli.console import (
    err,
    out,
    print_answer,
    print_checked,
    print_shapes,
    print_status,
    print_tuned,
    say,
    say_compiled,
    say_no_gpu,
    say_of_server,
    say_recorded,
    say_unread,
    watch_status,
)
from autotune.cli.exits import EXIT_CHECK_FAILED, errors_in_one_line
from autotune.cli.flags import (
    AsJson,
    CheckDeterministic,
    CheckReplay,
    CheckStorage,
    CheckStudy,
    Deterministic,
    EffortName,
    ExportDeterministic,
    ExportOutput,
    Folder,
    GpuArch,
    Gpus,
    Kernels,
    Merge,
    NoConfigs,
    Output,
    Quiet,
    Ray,
    Record,
    RecordOutput,
    Replay,
    RowsMax,
    Sample,
    Sampler,
    Seed,
    ServerCommand,
    Storage,
    StudiesStorage,
    TimeBudget,
    TraceOutput,
    Trials,
    Verbose,
    Version,
    WarmKernels,
    WarmStart,
    WarmStudy,
    WatchStatus,
)
from autotune.cli.program import TakesServerArguments, WholeSummaries
from autotune.cli.searching import compare_samplers, learn
from autotune.cli.shape_flags import ShapeFlags, takes_shapes
from autotune.cli.showing import DATABASE, dashboard, report
from autotune.errors import InputError, RecordingError

app = typer.Typer(
    cls=WholeSummaries,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def autotune(*, version: Version = False) -> None:
    """Find the fastest launch configurations of vLLM's multi-LoRA Triton kernels."""


@app.command()
@takes_shapes()
def run(  # noqa: PLR0913 - one parameter a flag
    *,
    flags: ShapeFlags,
    trials: Trials = None,
    effort: EffortName = None,
    time_budget: TimeBudget = None,
    sampler: Sampler = None,
    warm_start: WarmStart = None,
    deterministic: Deterministic = None,
    kernels: Kernels = None,
    gpus: Gpus = None,
    ray: Ray = None,
    replay: Replay = None,
    storage: Storage = None,
    output: Output = None,
    merge: Merge = False,
    record: Record = None,
    rows_max: RowsMax = None,
    no_configs: NoConfigs = False,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tune every shape, and write the files that vLLM loads."""
    from autotune.measure.opening import opened_runners
    from autotune.measure.runners import begin_gpus, replay_runner, stand_in

    if replay and kernels:
        raise typer.BadParameter("--kernels contradicts --replay, whose kernels were recorded")
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose contradict one another; give one of them")
    out.quiet = quiet
    out.outlive_reader(say_unread)
    with errors_in_one_line():
        recorded = replay_runner(replay) if replay else None
        # The processes that measure import what they need while this one does.
        begun = None if recorded or ray else begin_gpus(kernels or "auto", gpus)
        from autotune.cli.handover import check_output, hand_over, refuse_foreign
        from autotune.cli.live import Verbosity, run_watched
        from autotune.search.run import check_axes, check_places, check_rows_max, read_ahead

        plan = flags.plan(None if recorded is None else recorded.shapes).override(
            trials=trials,
            effort=effort,
            time_budget_s=time_budget,
            sampler=sampler,
            warm_start=warm_start,
            deterministic=deterministic,
            kernels=kernels,
            gpus=gpus,
            storage=storage,
            output=output,
            seed=seed,
        )
        check_rows_max(plan, rows_max)
        check_axes(plan)
        check_places(plan, record)
        check_output(Path(plan.output))
        if recorded is None and begun is None and ray is None:
            recorded = stand_in(plan.kernels, plan.gpus)
            plan = plan.answered_by(recorded.shapes)
            say_no_gpu(recorded.environment.gpu)
        verbosity = Verbosity.of(quiet, verbose)
        read_ahead(plan)
        with opened_runners(
            plan.kernels, plan.gpus, say, recorded=recorded, begun=begun, ray=ray
        ) as runners:
            environment = replace(runners[0].environment, deterministic=plan.deterministic)
            refuse_foreign(plan.shapes, environment, Path(plan.output), merge=merge)
            done = run_watched(
                plan,
                runners,
                verbosity,
                record=record,
                rows_max=rows_max,
                confirm=not no_configs,
            )
        print_tuned(done, plan)
        chosen = [(done.environment, done.selections)]
        is_sound = hand_over(chosen, Path(plan.output), merge=merge, release=plan.server_release)
        print_answer(done, plan, runners[0].replayed)
    _end(is_sound)


@app.command("record")
@takes_shapes()
def record_spaces(
    *,
    file: RecordOutput,
    flags: ShapeFlags,
    sample: Sample = None,
    kernels: Kernels = None,
    seed: Seed = None,
) -> None:
    """Measure whole search spaces on the GPU, for replays without one."""
    from autotune.files import try_file
    from autotune.measure.runners import gpu_runner
    from autotune.measure.sweep import record

    out.outlive_reader(say_unread)
    with errors_in_one_line():
        plan = flags.plan().override(kernels=kernels, seed=seed)
        say_of_server(plan)
        try_file(file, RecordingError, advice="free the place, or name another file with -o")
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
@takes_shapes()
def shapes(*, flags: ShapeFlags, replay: Replay = None, as_json: AsJson = False) -> None:
    """List the shapes, with the key under which vLLM looks each one up."""
    from autotune.measure.runners import replay_runner

    with errors_in_one_line():
        print_shapes(flags.plan(replay_runner(replay).shapes if replay else None), as_json=as_json)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def trace(*, command: ServerCommand, file: TraceOutput = Path("trace.jsonl")) -> None:
    """Run a server, and write down every LoRA kernel that it looks up.

    The server's own command follows --. Signals are passed on to it, and its exit code is that of
    autotune. What it has asked is said at its end. Give the file to run, shapes, check and bench
    with --trace.
    """
    from autotune.cli.trace import run_traced

    with errors_in_one_line():
        code = run_traced(command, file)
    raise typer.Exit(code)


app.command(cls=TakesServerArguments)(bench)


@app.command()
def export(
    *,
    storage: StudiesStorage = DATABASE,
    output: ExportOutput = "tuned",
    merge: Merge = False,
    deterministic: ExportDeterministic = None,
) -> None:
    """Write vLLM's files again from what the studies chose."""
    from autotune.cli.handover import check_output, hand_over
    from autotune.cli.sources import selections_in
    from autotune.export.mixture import of_one_kind

    with errors_in_one_line():
        check_output(Path(output))
        stored, note = of_one_kind(selections_in(storage), deterministic=deterministic)
        if note:
            say(note, err)
        is_sound = hand_over(stored, Path(output), merge=merge)
    _end(is_sound)


@app.command()
def status(
    *,
    storage: StudiesStorage = DATABASE,
    watch: WatchStatus = False,
    as_json: AsJson = False,
) -> None:
    """Tell how far the studies of a database are, also while a run writes it."""
    from autotune.store import Store, overview

    if watch and as_json:
        raise typer.BadParameter("--watch contradicts --json; leave one of them out")
    with errors_in_one_line(), closing(Store(storage, read_only=True)) as store:
        seen = overview(store)
        if not seen.studies:
            raise InputError("the database holds no study; tune one with autotune run")
        if watch:
            watch_status(lambda: overview(store))
        else:
            print_status(seen, storage, as_json=as_json)


@app.command()
@takes_shapes(study=CheckStudy)
def check(
    *,
    folder: Folder,
    flags: ShapeFlags,
    replay: CheckReplay = None,
    storage: CheckStorage = None,
    deterministic: CheckDeterministic = False,
    as_json: AsJson = False,
) -> None:
    """Tell what vLLM finds in a folder, and what is wrong there.

    With no study, recording or database, and no flag about shapes, the files alone are checked.
    The exit code is 3 if vLLM would stop, compute wrong numbers, or never read one of the files.
    """
    from autotune.cli.sources import plans_by_gpu
    from autotune.export.check import by_batch
    from autotune.export.check import check as check_files

    if replay and storage:
        raise typer.BadParameter("--replay and --storage both name the shapes; give one of them")
    with errors_in_one_line():
        plans = plans_by_gpu(flags, replay=replay, storage=storage)
        say_of_server(*plans.values())
        report = check_files(
            folder,
            {gpu: plan.looked_up for gpu, plan in plans.items()},
            {} if replay or storage else {gpu: plan.served for gpu, plan in plans.items()},
            deterministic=deterministic,
            release=next(filter(None, (plan.server_release for plan in plans.values())), None),
        )
        asked = [each for plan in plans.values() if plan.trace for each in plan.trace.asked]
        layers = {shape: names for plan in plans.values() for shape, names in plan.layers.items()}
    print_checked(report, layers, batches=by_batch(report.lookups, asked), as_json=as_json)
    _end(not report.has_errors)


@app.command()
@takes_shapes(study=WarmStudy)
def warm(
    *,
    folder: Folder,
    flags: ShapeFlags,
    kernels: WarmKernels = "vllm",
    arch: GpuArch = None,
) -> None:
    """Compile what a server launches with a folder into Triton's cache, with no GPU if need be.

    Without a study, a model and a trace, the kernels that the folder was tuned for are compiled
    for any batch size. The cache is that of TRITON_CACHE_DIR. The exit code is 3 if a kernel does
    not compile.
    """
    from autotune.cli.sources import plans_by_gpu
    from autotune.export.warming import warm as warm_cache
    from autotune.measure.runners import check_installed

    with errors_in_one_line():
        check_installed(kernels)
        plans = plans_by_gpu(flags, replay=None, storage=None)
        say_of_server(*plans.values())
        warmed = warm_cache(
            folder,
            {gpu: plan.served for gpu, plan in plans.items()},
            kernels=kernels,
            arch=arch,
            progress=say_compiled,
        )
    for line in warmed.lines:
        out.print(line)
    _end(warmed.is_whole)


app.command()(report)
app.command()(dashboard)
app.command("configs")(configs)
app.command("compare-samplers")(compare_samplers)
app.command("learn")(learn)


def _end(is_sound: bool) -> None:
    """End a command that checks something.

    Raises:
        typer.Exit: What was checked is not sound; the exit code is 3.
    """
    if not is_sound:
        raise typer.Exit(EXIT_CHECK_FAILED)
