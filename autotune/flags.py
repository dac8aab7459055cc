"""What the command line's flags take: their types, checks and help texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from autotune.effort import EFFORTS
from autotune.errors import InputError
from autotune.ops import LoraOp
from autotune.studyfile import KERNELS, SAMPLERS, parse_duration


class TokenCounts(tuple[int, ...]):
    """Batch sizes; a type of its own, since typer takes a plain tuple for several arguments."""

    __slots__ = ()


def _tokens(text: str) -> TokenCounts:
    try:
        return TokenCounts(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"must be token counts such as 1,16,64: got {text!r}") from None


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
    typer.Option(parser=_tokens, metavar="1,16,64", help="Batch sizes, in tokens."),
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
        help="Which to compare; strategies of Kernel Tuner are named kernel-tuner:NAME.",
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
Plot = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="PLOT.html", help="Draw regret over trials."),
]
