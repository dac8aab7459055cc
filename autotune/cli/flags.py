"""What the command line's flags take: their types, checks and help texts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.plan.effort import EFFORTS
from autotune.plan.file import AUTO, KERNELS, MODEL_TABLE, SAMPLERS, parse_duration


class TokenCounts(tuple[int, ...]):
    """Batch sizes; a type of its own, since typer takes a plain tuple for several arguments."""

    __slots__ = ()


def _tokens(text: str) -> TokenCounts | str:
    if text == AUTO:
        return AUTO
    try:
        return TokenCounts(int(part) for part in text.split(","))
    except ValueError:
        message = f"must be token counts such as 1,16,64, or auto: got {text!r}"
        raise typer.BadParameter(message) from None


def _seconds(text: str) -> int:
    try:
        return parse_duration(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


class WholeNumber(int):
    """A number that ``_whole`` has checked; typer's own message leaves out what it was given."""

    __slots__ = ()


def _whole(smallest: int) -> Callable[[str], WholeNumber]:
    def parse(text: str) -> WholeNumber:
        if not text.isascii() or not text.isdigit() or int(text) < smallest:
            message = f"must be a whole number of at least {smallest}: got {text!r}"
            raise typer.BadParameter(message)
        return WholeNumber(text)

    return parse


def _port(text: str) -> int:
    if not str(text).isascii() or not str(text).isdigit() or int(text) > 65_535:
        raise typer.BadParameter(f"must be a port, a whole number up to 65535: got {text!r}")
    return int(text)


def _choice(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)}: got {text!r}")
        return text

    return parse


def _op(text: str) -> LoraOp:
    names = [op.value for op in LoraOp]
    if text not in names:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, names))}")
    return LoraOp(text)


Study = Annotated[
    Path | None,
    typer.Argument(metavar="[STUDY]", help="Study file (TOML); the quick-start study if none."),
]
CheckStudy = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY]", help="Study file (TOML) whose shapes are looked up; may be left out."
    ),
]
MaxLoras = Annotated[
    WholeNumber | None, typer.Option(parser=_whole(1), metavar="N", help="As given to vLLM.")
]
Rank = Annotated[
    WholeNumber | None,
    typer.Option(parser=_whole(1), metavar="N", help="The server's --max-lora-rank."),
]
Tokens = Annotated[
    TokenCounts | None,
    typer.Option(
        parser=_tokens,
        metavar="1,16,64|auto",
        help="Batch sizes, in tokens; auto for those that vLLM captures, thinned and refined.",
    ),
]
RowsMax = Annotated[
    WholeNumber | None,
    typer.Option(
        "--rows-max",
        parser=_whole(1),
        metavar="N",
        help="With --tokens auto: merge rows down to N a layer, where it costs less than 1 %.",
    ),
]
Op = Annotated[
    list[LoraOp] | None,
    typer.Option(
        parser=_op,
        metavar="OP",
        help="Only this op, such as shrink; may be repeated.",
    ),
]
Kernels = Annotated[
    str | None,
    typer.Option(parser=_choice(KERNELS), metavar="|".join(KERNELS), help="Whose kernels."),
]
Replay = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Answer from a recording, with no GPU; may be repeated."),
]
CheckReplay = Annotated[
    list[Path] | None,
    typer.Option(
        "--replay", metavar="FILE", help="A recording: its GPU, and its shapes; may be repeated."
    ),
]
CheckStorage = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL", help="The studies' database: its GPU, and its shapes."
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(metavar="URL", help="SQLAlchemy URL; sqlite:///autotune.db if none."),
]
StudiesStorage = Annotated[str, typer.Option(metavar="URL", help="The studies' database.")]
WarmStart = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="An older database of this GPU and these kernels, which the search learns from.",
    ),
]
Output = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder for vLLM's files; tuned/ if none.")
]
Merge = Annotated[bool, typer.Option("--merge", help="Add to files that autotune did not write.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but what is wrong.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="One line a trial.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Seed = Annotated[
    WholeNumber | None,
    typer.Option(parser=_whole(0), metavar="N", help="The same seed makes the same choices."),
]
Trials = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=_whole(1), metavar="N", help="Distinct configurations for each shape, no fewer."
    ),
]
EffortName = Annotated[
    str | None,
    typer.Option(
        "--effort",
        parser=_choice(tuple(EFFORTS)),
        metavar="|".join(EFFORTS),
        help="When a shape is left before its trials; normal if --trials is not given either.",
    ),
]
TimeBudget = Annotated[
    int | None, typer.Option(parser=_seconds, metavar="10m", help="Limit for the whole search.")
]
Sampler = Annotated[
    str | None,
    typer.Option(parser=_choice(SAMPLERS), metavar="|".join(SAMPLERS), help="How to search."),
]
Sample = Annotated[
    WholeNumber | None,
    typer.Option(parser=_whole(1), metavar="N", help="Only so many configurations of each shape."),
]
Record = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write everything measured into a recording, too."),
]
Samplers = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Which to compare; also kernel-tuner:NAME and helion:lfbo, other tuners' searches.",
    ),
]
Seeds = Annotated[
    WholeNumber | None,
    typer.Option(parser=_whole(1), metavar="N", help="Searches of each shape; 3 if not given."),
]
ComparedTrials = Annotated[
    WholeNumber | None,
    typer.Option(
        "--trials", parser=_whole(1), metavar="N", help="Of each search; 200 if not given."
    ),
]
Lookahead = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=_whole(1),
        metavar="N",
        help="Configurations asked for at once, as a compile pool does; 1 if not given.",
    ),
]
Port = Annotated[
    int,
    typer.Option(parser=_port, metavar="P", help="Port to listen on; 0 for any that is free."),
]
Plot = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="PLOT.html", help="Draw regret over trials."),
]


# ------------------------------------------------------------------ the flags of a model


#: The fields of ``ModelFlags`` that are ``[model]``'s, and those that are ``[tokens]``'s.
MODEL_FIELDS = tuple(MODEL_TABLE)
LIMIT_FIELDS = ("max_num_batched_tokens", "max_num_seqs")


class Names(tuple[str, ...]):
    """Names of modules; a type of its own, as ``TokenCounts`` is."""

    __slots__ = ()


def _names(text: str) -> Names:
    names = Names(filter(None, (part.strip() for part in text.split(","))))
    if not names:
        raise typer.BadParameter(f"must be names such as q_proj,v_proj: got {text!r}")
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlags:
    """What the flags of a model and its server say; None where one is not given.

    The fields are those of ``[model]``, the last two of ``[tokens]``.
    """

    config: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="A config.json, its folder, or a hub id."),
    ] = None
    tensor_parallel: Annotated[
        WholeNumber | None,
        typer.Option(
            "--tp", parser=_whole(1), metavar="N", help="The server's --tensor-parallel-size."
        ),
    ] = None
    fully_sharded: Annotated[
        bool | None,
        typer.Option(
            "--fully-sharded/--no-fully-sharded", help="The server's --fully-sharded-loras."
        ),
    ] = None
    expert_parallel: Annotated[
        bool | None,
        typer.Option(
            "--expert-parallel/--no-expert-parallel",
            help="The server's --enable-expert-parallel.",
        ),
    ] = None
    target_modules: Annotated[
        Names | None,
        typer.Option(
            "--target-modules",
            parser=_names,
            metavar="q_proj,...",
            help="The server's --lora-target-modules; all layers that can have LoRA if none.",
        ),
    ] = None
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="A",
            help="An adapter_config.json, its folder or a hub id: only its layers, at its rank.",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        WholeNumber | None,
        typer.Option(
            "--max-num-batched-tokens",
            parser=_whole(1),
            metavar="N",
            help="The server's, for --tokens auto; 8192 if none.",
        ),
    ] = None
    max_num_seqs: Annotated[
        WholeNumber | None,
        typer.Option(
            "--max-num-seqs",
            parser=_whole(1),
            metavar="N",
            help="The server's, for --tokens auto; 1024 if none.",
        ),
    ] = None

    def given(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Those of some fields that were given."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of ``ModelFlags``, in place of its parameter ``model``."""
    names = [each.name for each in fields(ModelFlags)]
    hints = get_type_hints(ModelFlags, include_extras=True)
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]
        )
        for name in names
    ]

    @functools.wraps(command)
    def with_model(**given: Any) -> None:  # noqa: ANN401 - whatever the command takes
        model = ModelFlags(**{name: given.pop(name) for name in names})
        command(**given, model=model)

    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for parameter in signature.parameters.values():
        parameters += flags if parameter.name == "model" else [parameter]
    with_model.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_model.__annotations__ = {each.name: each.annotation for each in parameters}
    return with_model
