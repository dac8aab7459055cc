"""From the text of a flag to its value. A text that cannot be is a usage error that quotes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import typer

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.measure.cuda.visible import seen_text
from autotune.plan.file import AUTO, Gpus, capture_sizes, parse_duration
from autotune.plan.file import gpus as plan_gpus
from autotune.plan.file import release as plan_release

_Value = TypeVar("_Value")

#: More than any number here has; Python reads none of more than 4300 digits.
_MOST_DIGITS = 40


class TokenCounts(tuple[int, ...]):
    """Batch sizes, in tokens. Typer takes a plain tuple for a flag with several arguments."""

    __slots__ = ()


class Names(tuple[str, ...]):
    """Names of modules. Typer takes a plain tuple for a flag with several arguments."""

    __slots__ = ()


class WholeNumber(int):
    """An integer from ``whole``. For a plain int typer checks too, and does not quote the text."""

    __slots__ = ()


def tokens(text: str) -> TokenCounts | str:
    """Batch sizes with commas between, or ``AUTO``."""
    if text == AUTO:
        return AUTO
    try:
        return TokenCounts(int(part) for part in text.split(","))
    except ValueError:
        message = f"must be token counts such as 1,16,64, or auto: got {text!r}"
        raise typer.BadParameter(message) from None


def sizes(text: str) -> TokenCounts:
    """Batch sizes with commas between."""
    parts = [part.strip() for part in text.split(",")]
    return TokenCounts(_checked(capture_sizes, [_as_number(part) for part in parts]))


def release(text: str) -> str:
    """A release of vLLM, such as ``0.33.0``."""
    return _checked(plan_release, text)


def names(text: str) -> Names:
    """At least one name, with commas between."""
    found = Names(filter(None, (part.strip() for part in text.split(","))))
    if not found:
        raise typer.BadParameter(f"must be names such as q_proj,v_proj: got {text!r}")
    return found


def seconds(text: str) -> int:
    """A duration such as ``10m``, in seconds."""
    return _checked(parse_duration, text)


def whole(smallest: int, largest: int | None = None) -> Callable[[str], WholeNumber]:
    """The parser of an integer that must not be below ``smallest``, nor above ``largest``."""
    limits = f"of at least {smallest}" if largest is None else f"from {smallest} to {largest}"

    def parse(text: str) -> WholeNumber:
        if len(text) > _MOST_DIGITS:
            message = f"must be a whole number {limits}: got {len(text)} characters"
            raise typer.BadParameter(message)
        if not _is_digits(text) or not smallest <= int(text) <= (largest or int(text)):
            raise typer.BadParameter(f"must be a whole number {limits}: got {text!r}")
        return WholeNumber(text)

    return parse


def counts(smallest: int, largest: int | None = None) -> Callable[[str], TokenCounts]:
    """The parser of whole numbers with commas between, each as by ``whole``."""
    one = whole(smallest, largest)
    return lambda text: TokenCounts(dict.fromkeys(map(one, text.split(","))))


class GpuNumbers(tuple[int, ...]):
    """Numbers of GPUs. Typer takes a plain tuple for a flag with several arguments."""

    __slots__ = ()


def gpus(text: str) -> Gpus:
    """``ALL``, how many GPUs, or the numbers of some with commas between: ``2,`` is one alone."""
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    known = [int(part) if _is_digits(part) else part for part in parts]
    given = known if "," in text else known[0]
    try:
        asked = plan_gpus(given)
    except InputError:
        message = (
            "must be all, how many GPUs, or the numbers of some, each once and counted from 0, "
            f"such as 0,2 (one alone: 2,): got {text!r}; {seen_text()}"
        )
        raise typer.BadParameter(message) from None
    return GpuNumbers(asked) if isinstance(asked, tuple) else asked


def ray(text: str) -> str:
    """``auto``, or where the head of a Ray cluster listens."""
    host, _, number = text.rpartition(":")
    is_there = host.isprintable() and "/" not in host and " " not in host and host
    if text != "auto" and not (is_there and _is_digits(number) and 0 < int(number) <= 65_535):
        raise typer.BadParameter(
            "must be auto, for the cluster that this host belongs to, or the HOST:PORT of its "
            f"head, such as 10.0.0.1:6379: got {text!r}"
        )
    return text


def port(text: str) -> int:
    """A TCP port; 0 for any that is free."""
    # Typer also parses the default, which is an int.
    digits = str(text)
    if not _is_digits(digits) or len(digits) > _MOST_DIGITS or int(digits) > 65_535:
        got = repr(text) if len(digits) <= _MOST_DIGITS else f"{len(digits)} characters"
        raise typer.BadParameter(f"must be a port, a whole number up to 65535: got {got}")
    return int(digits)


def choice(choices: Sequence[str]) -> Callable[[str], str]:
    """The parser of one of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)}: got {text!r}")
        return text

    return parse


def op(text: str) -> LoraOp:
    """An op by its name."""
    known = [each.value for each in LoraOp]
    if text not in known:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(map(repr, known))}")
    return LoraOp(text)


def _checked(check: Callable[[object], _Value], value: object) -> _Value:
    """What a check of study files makes of a value; its error is a usage error here."""
    try:
        return check(value)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def _as_number(text: str) -> int | str:
    """An integer where it is one that can be read, else the text."""
    return int(text) if _is_digits(text) and len(text) <= _MOST_DIGITS else text


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()
