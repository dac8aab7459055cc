"""The flags of the command line: their types and help texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from autotune.cli import parsers
from autotune.cli.parsers import Names, TokenCounts, WholeNumber
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.effort import EFFORTS
from autotune.plan.file import KERNELS, MODEL_TABLE, SAMPLERS, TABLES
from autotune.plan.models import MOE_BACKENDS
from autotune.plan.study import StudyPlan
from autotune.version import __version__

# ------------------------------------------------------------------ which shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFlags:
    """The flags that choose the shapes; None where a flag is not given.

    A field is called as in ``[model]`` or ``[tokens]``, or else as ``StudyPlan.override`` calls it.
    ``takes_shapes`` gives a command all of them.
    """

    study: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY]", help="Study file (TOML); the quick-start study if none."),
    ] = None
    max_loras: Annotated[
        WholeNumber | None,
        typer.Option(parser=parsers.whole(1), metavar="N", help="The server's --max-loras."),
    ] = None
    rank: Annotated[
        WholeNumber | None,
        typer.Option(parser=parsers.whole(1), metavar="N", help="The server's --max-lora-rank."),
    ] = None
    tokens: Annotated[
        TokenCounts | None,
        typer.Option(
            parser=parsers.tokens,
            metavar="1,16,64|auto",
            help="Batch sizes, in tokens; auto chooses among those that vLLM captures, and is what "
            "a --model gets if none.",
        ),
    ] = None
    ops: Annotated[
        list[LoraOp] | None,
        typer.Option(
            "--op",
            parser=parsers.op,
            metavar="OP",
            help="Only this op, such as shrink; may be repeated; all ops if none.",
        ),
    ] = None
    config: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="A config.json, its folder, or a hub id."),
    ] = None
    tensor_parallel: Annotated[
        WholeNumber | None,
        typer.Option(
            "--tp",
            parser=parsers.whole(1),
            metavar="N",
            help="The server's --tensor-parallel-size; 1 if none.",
        ),
    ] = None
    fully_sharded: Annotated[
        bool | None,
        typer.Option(
            "--fully-sharded/--no-fully-sharded",
            help="The server's --fully-sharded-loras; not if neither is given.",
        ),
    ] = None
    expert_parallel: Annotated[
        bool | None,
        typer.Option(
            "--expert-parallel/--no-expert-parallel",
            help="The server's --enable-expert-parallel; not if neither is given.",
        ),
    ] = None
    mixed_moe_lora_format: Annotated[
        bool | None, typer.Option(help="The server's --enable-mixed-moe-lora-format.")
    ] = None
    moe_shared_loras: Annotated[
        bool | None, typer.Option(help="The server's --enable-moe-shared-loras.")
    ] = None
    moe_backend: Annotated[
        str | None,
        typer.Option(
            parser=parsers.choice(tuple(MOE_BACKENDS)),
            metavar="|".join(MOE_BACKENDS),
            help="The server's --moe-backend, by which experts in MXFP4 are padded.",
        ),
    ] = None
    target_modules: Annotated[
        Names | None,
        typer.Option(
            parser=parsers.names,
            metavar="q_proj,...",
            help="The server's --lora-target-modules; all layers that can have LoRA if none.",
        ),
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A",
            help="An adapter_config.json, its folder or a hub id: only its layers, at its rank.",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="The server's flag of this name, for --tokens auto; 8192 if none.",
        ),
    ] = None
    max_num_seqs: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="The server's flag of this name, for --tokens auto; 1024 if none.",
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The values of the flags that were given."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def plan(self, recorded: Sequence[KernelShape] | None = None) -> StudyPlan:
        """The plan that the flags ask for.

        Its shapes are those of the study file, else of the model, else of the recording, else of
        the quick-start study.

        Args:
            recorded: The shapes of a recording. With ``--tokens auto`` no others are asked for.

        Raises:
            StudyFileError: The study file or a flag cannot be used.
        """
        given = self.given
        given.pop("study", None)
        if self.adapter:
            given["adapter"] = parsers.once("--adapter", self.adapter)
        model = {name: given.pop(name) for name in MODEL_TABLE if name in given}
        limits = {name: given.pop(name) for name in TABLES["tokens"] if name in given}
        plan = self._unflagged(recorded).with_model(model, limits)
        if recorded is not None:
            plan = plan.answered_by(recorded)
        return plan.override(**given)

    def _unflagged(self, recorded: Sequence[KernelShape] | None) -> StudyPlan:
        if self.study is not None:
            return StudyPlan.read(self.study)
        if self.config is not None:
            return StudyPlan.of_model(self.config)
        return StudyPlan.quickstart() if recorded is None else StudyPlan.of_shapes(recorded)


def takes_shapes(**instead: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of ``ShapeFlags``, in place of its parameter ``flags``.

    Args:
        instead: The types of flags that need another help text in this command.
    """
    hints = get_type_hints(ShapeFlags, include_extras=True) | instead
    names = [each.name for each in fields(ShapeFlags)]
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]
        )
        for name in names
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_flags(**given: Any) -> None:  # noqa: ANN401 - whatever the command takes
            own = {name: given.pop(name) for name in names}
            command(**given, flags=ShapeFlags(**own))

        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for parameter in signature.parameters.values():
            parameters += flags if parameter.name == "flags" else [parameter]
        # Typer reads both.
        with_flags.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters
        )
        with_flags.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_flags

    return decorate


CheckStudy = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY]", help="Study file (TOML) whose shapes are looked up; may be left out."
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

# ------------------------------------------------------------------ what is measured, and how

Kernels = Annotated[
    str | None,
    typer.Option(
        parser=parsers.choice(KERNELS),
        metavar="|".join(KERNELS),
        help="Whose kernels to launch; auto if none: vllm where it can be used, else builtin.",
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
        metavar="URL",
        help="An older database of this GPU and these kernels, which the search learns from.",
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
Record = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write everything measured into a recording, too; none if not given."
    ),
]
RecordOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The recording.")
]
ReportOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The page; report.html if none.")
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
Plot = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="PLOT.html", help="Draw regret over trials; no drawing if none."
    ),
]
