"""Checks of JSON that comes from outside: from files and databases, against a pydantic model."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from autotune.errors import InputError, shown

_Model = TypeVar("_Model", bound="Untrusted")

#: A latency, microseconds. An hour is longer than any launch.
Microseconds = Annotated[float, Field(gt=0, lt=3.6e9, allow_inf_nan=False)]

#: A ratio, a speed: anything above 0.
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: A number of something, in the range that a database's integer has.
Count = Annotated[int, Field(ge=0, lt=2**31)]


#: What is allowed, in place of pydantic's own words, by the type of its error.
_ALLOWED = {
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must be a list of length {max_length} at most",
    "too_short": "must be a list of length {min_length} at least",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_type": "must be a number",
    "string_type": "must be a text",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
}

#: Where a parser stopped.
_POSITION = re.compile(r"line (\d+) column (\d+)")


class Untrusted(BaseModel):
    """Base of the models. No value is converted: ``"5"`` is no number, and 1 is not true."""

    model_config = ConfigDict(strict=True, frozen=True)


def read_json(model: type[_Model], text: str | bytes) -> _Model:
    """Read JSON text as a model.

    Args:
        model: What the text must hold.
        text: The JSON text.

    Raises:
        InputError: The text is no JSON, is nested too deeply, or a value is missing or wrong. The
            message names the first such field, what is allowed, and the value.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] == "json_invalid":
            raise InputError(_no_json(error, text)) from None
        raise InputError(_first(error)) from None


def read_row(model: type[_Model], row: Mapping[str, object]) -> _Model:
    """Read a database's row as a model; text may stand for the value of an enumeration.

    Raises:
        InputError: A value is missing or wrong, as for ``read_json``.
    """
    try:
        return model.model_validate(row, strict=False)
    except ValidationError as error:
        raise InputError(_first(error)) from None


def parse_json(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """The value of JSON text that no model describes.

    Raises:
        InputError: The text is no JSON, or is nested too deeply.
    """
    try:
        return from_json(text)
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None


def _no_json(error: ValidationError, text: str | bytes) -> str:
    """Why a text is no JSON, in words for somebody who did not write it."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    if content.startswith(codecs.BOM_UTF8):
        return "not JSON: it begins with a byte-order mark; save it as UTF-8 without one"
    if not content.strip():
        return "not JSON: it is empty"
    reason = str(error.errors(include_url=False)[0]["ctx"]["error"])
    if b"\n" in content.strip():
        return f"not JSON: {reason}"
    is_cut = reason.startswith(("EOF", "control character")) and _is_at_end(reason, content)
    if is_cut:
        return f"not JSON: it is cut off after {len(content.strip())} bytes"
    return f"not JSON: it is broken: {reason.replace('line 1 column', 'column')}"


def _is_at_end(reason: str, content: bytes) -> bool:
    """Whether a parser's reason is for the end of a single line."""
    line, column = map(int, _POSITION.findall(reason)[-1])
    return line > 1 or column >= len(content.rstrip())


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])
    what = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    allowed = _ALLOWED.get(first["type"])
    if allowed is not None:
        what = allowed.format(**first.get("ctx", {}))
    if first["type"] == "missing":
        return f"{place[1:]} is missing"
    if first["type"] == "value_error":  # a model's own rule says it all
        return f"{place[1:]} {what}".strip()
    return f"{place[1:] or 'the whole'} {what}: got {shown(first['input'])}"
