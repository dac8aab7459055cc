"""The flags of the command line: their types and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import parsers
from autotune.cli.parsers import WholeNumber
from autotune.plan.effort import EFFORTS
from autotune.plan.file import KERNELS, SAMPLERS
from autotune.version import __version__

# ------------------------------------------------------------------ which shapes

CheckStudy = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY]", help="Study file (TOML) whose shapes are looked up; may be left out."
    ),
]
WarmStudy = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY]", help="Study file (TOML) of the model that is served; may be left out."
    ),
]
WarmKernels = Annotated[
    str,
    typer.Option(
        parser=parsers.choice(("vllm", "builtin")),
        metavar="vllm|builtin",
        help="Whose kernels to compile; a server needs vllm's.",
    ),
]
GpuArch = Annotated[
    str | None,
    typer.Option(
        "--gpu-arch",
        metavar="sm_90",
        help="What to compile for; as the GPU here, or that of the folder, if none.",
    ),
]
Replay = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Answer from a recording, with no GPU; may be repeated."),
]
CheckReplay = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Look up the shapes of a recording for its GPU; may be repeated."
    ),
]
CheckStorage = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Look up the shapes of a database for their GPU."),
]

ServerCommand = Annotated[
    list[str],
    typer.Argument(
        metavar="COMMAND", help="The server's own command, after --, such as vllm serve MODEL."
    ),
]
TraceOutput = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE", help="The file to write; an older trace is replaced."
    ),
]

# ------------------------------------------------------------------ what is measured, and how

Kernels = Annotated[
    str | None,
    typer.Option(
        parser=parsers.choice(KERNELS),
        metavar="|".join(KERNELS),
        help="Whose kernels to launch; auto if none: vllm where it can be used, else builtin.",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(
        parser=parsers.gpus,
        metavar="all|N|0,2",
        help="How many GPUs measure side by side, or which of those visible, counted from 0 (one "
        "alone: 2,); the first that is free if none. With --replay, how many replays.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        parser=parsers.ray,
        metavar="auto|HOST:PORT",
        help="Measure on the GPUs of this Ray cluster, all that are free or --gpus N of them. With "
        "--replay, a replay for each.",
    ),
]
Trials = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1),
        metavar="N",
        help="Distinct configurations to measure for each shape; with --effort, at most; without, "
        "those of normal effort, 200.",
    ),
]
EffortName = Annotated[
    str | None,
    typer.Option(
        "--effort",
        parser=parsers.choice(tuple(EFFORTS)),
        metavar="|".join(EFFORTS),
        help="How soon a shape that gains no more is left; normal if --trials is not given either.",
    ),
]
TimeBudget = Annotated[
    int | None,
    typer.Option(
        parser=parsers.seconds, metavar="10m", help="Limit for the whole search; none if not given."
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        parser=parsers.choice(SAMPLERS),
        metavar="|".join(SAMPLERS),
        help="How to search; adaptive if none.",
    ),
]
WarmStart = Annotated[
    str | None,
    typer.Option(
        metavar="URL|FILE",
        help="An older database of this GPU and these kernels, or a file of autotune learn, which "
        "the search learns from.",
    ),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Choose only configurations that do not split k, so that the same input gives the "
        "same bits; not if neither is given.",
    ),
]
RowsMax = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1),
        metavar="N",
        help="With --tokens auto: merge rows down to N a layer, where it costs less than 1 %; "
        "any number if none.",
    ),
]
Seed = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(0),
        metavar="N",
        help="The same seed makes the same choices; 0 if none.",
    ),
]
Sample = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1),
        metavar="N",
        help="Measure only N configurations of each shape, drawn at random; all if none.",
    ),
]

# ------------------------------------------------------------------ where results are and go

Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The database, as a SQLAlchemy URL; sqlite:///autotune.db if none.",
    ),
]
StudiesStorage = Annotated[str, typer.Option(metavar="URL", help="The studies' database.")]
ReportStorage = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The studies' database; sqlite:///autotune.db if none."),
]
ReportReplay = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A recording, in place of a database; may be repeated."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder with vLLM's files.")]
Output = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder for vLLM's files; tuned/ if none.")
]
ExportOutput = Annotated[str, typer.Option(metavar="DIR", help="Folder for vLLM's files.")]
Merge = Annotated[bool, typer.Option("--merge", help="Add to files that autotune did not write.")]
ExportDeterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--no-deterministic",
        help="Of a database that holds both, write what was chosen with --deterministic, or what "
        "was chosen without, as if neither is given.",
    ),
]
CheckDeterministic = Annotated[
    bool,
    typer.Option("--deterministic", help="An entry, or a default, that splits k is an error, too."),
]
Record = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write everything measured into a recording, too; none if not given."
    ),
]
RecordOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The recording.")
]
LearnOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="DATABASE|RECORDING...",
        help="Databases of runs, by file or URL, and recordings; of a shape in several of them the "
        "last counts.",
        show_default=False,
    ),
]
ReportOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The page; report.html if none.")
]

# ------------------------------------------------------------------ what comes with autotune

NoConfigs = Annotated[
    bool,
    typer.Option(
        "--no-configs",
        help="Search shapes that autotune's own collection holds, too, not only confirm them.",
    ),
]
ConfigsFor = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="MODEL",
        help="How much of a model is covered: a config.json, its folder, or a hub id.",
    ),
]
ConfigsGpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="The GPU, as torch.cuda.get_device_name() gives it; the one here if none, else the "
        "only one there is.",
    ),
]
ConfigsOutput = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR|FILE",
        help="Folder for the entries that a model needs; with --pack the pack.",
    ),
]
ConfigsPath = Annotated[
    bool, typer.Option("--path", help="Print the folder, for VLLM_TUNED_CONFIG_FOLDER.")
]
PackSource = Annotated[
    str | None,
    typer.Option(
        "--pack",
        metavar="DIR|DATABASE",
        help="Pack what a folder or a database holds, to be given to the collection.",
    ),
]

# ------------------------------------------------------------------ what is printed

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only what is wrong.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print one line a trial.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WatchStatus = Annotated[
    bool, typer.Option("--watch", help="Print it again and again, until Ctrl-C.")
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"autotune {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version, and exit."
    ),
]

# ------------------------------------------------------------------ the dashboard, and contests

Host = Annotated[
    str, typer.Option(metavar="H", help="Address to listen on; whoever reaches it may edit.")
]
Port = Annotated[
    int,
    typer.Option(
        parser=parsers.port, metavar="P", help="Port to listen on; 0 for any that is free."
    ),
]
Samplers = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Which to compare; also kernel-tuner:NAME and helion:lfbo, other tuners' searches; "
        "those that are quick if none.",
    ),
]
ComparedTrials = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1), metavar="N", help="Trials of each search; 200 if not given."
    ),
]
Seeds = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1), metavar="N", help="Searches of each shape; 3 if not given."
    ),
]
Lookahead = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1),
        metavar="N",
        help="Configurations asked for at once, as a compile pool does; 1 if not given.",
    ),
]
ComparedEffort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        parser=parsers.choice(tuple(EFFORTS)),
        metavar="|".join(EFFORTS),
        help="Let searches end by themselves, as those of a run do; all trials are made if none.",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="PLOT.html", help="Draw regret over trials; no drawing if none."
    ),
]
