"""Checks of JSON that comes from outside: from files and databases, against a pydantic model."""

from __future__ import annotations

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


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])
    what = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if first["type"] == "missing":
        return f"{place[1:]} is missing"
    if first["type"] == "json_invalid":
        return what.replace("Invalid JSON:", "not JSON:")
    if first["type"] == "value_error":  # a model's own rule says it all
        return f"{place[1:]} {what}".strip()
    return f"{place[1:] or 'the whole'} {what}: got {shown(first['input'])}"
