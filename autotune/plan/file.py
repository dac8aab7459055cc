"""Reading a study file. A wrong table or value is an error that names its place in the file."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from autotune.errors import InputError, SpaceError, StudyFileError, shown
from autotune.launch.op import VLLM_RANKS, LoraOp
from autotune.launch.release import NEWEST_RELEASE, OLDEST_RELEASE, RELEASE, is_since
from autotune.launch.shape import DTYPE_BYTES, LARGEST_SIZE, KernelShape
from autotune.launch.space import complete_axes, default_axes
from autotune.plan.documents import read_document
from autotune.plan.effort import EFFORTS, effort_beside
from autotune.plan.model import ModelTable
from autotune.plan.models import MOE_BACKENDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

#: The sampler that also learns from the other shapes.
ADAPTIVE = "adaptive"

#: What ``sampler`` and ``--sampler`` take.
SAMPLERS = (ADAPTIVE, "tpe", "gp", "random", "exhaustive")

#: What ``kernels`` and ``--kernels`` take.
KERNELS = ("auto", "builtin", "vllm")

#: Stands for the batch sizes that the server captures, thinned.
AUTO = "auto"

#: What ``gpus`` takes: how many GPUs, ``ALL`` of them, or which by their numbers.
Gpus = int | str | tuple[int, ...]
ALL = "all"

_SHAPE_KEYS = (*(field.name for field in fields(KernelShape)), "layer")
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)

#: The axes that the user gave, per op; the runner chooses the values of the others.
Axes = Mapping[LoraOp, Mapping[str, tuple[int, ...]]]


def read_text(path: Path) -> str:
    """The text of a study file.

    Raises:
        StudyFileError: There is no such file, it is no file, it is too large, or it is not UTF-8.
    """
    try:
        return read_document(path, "the study file")
    except InputError as error:
        raise StudyFileError(str(error)) from error


def read_fields(source: str, text: str, folder: Path) -> dict[str, Any]:
    """What a study file says, by the names of ``StudyPlan``'s fields.

    Args:
        source: The file, as messages name it.
        text: Its text.
        folder: The folder that the paths of ``[model]`` are relative to.

    Raises:
        StudyFileError: The text is not TOML, or a key or a value in it is wrong.
    """
    return fields_of(source, _read_toml(source, text), folder)


def fields_of(source: str, content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the tables of a study file say; as ``read_fields``.

    Raises:
        StudyFileError: A key or a value is wrong.
    """
    check_keys(source, content, (*TABLES, "model", "shapes"))
    if "model" in content and "shapes" in content:
        raise StudyFileError(f"{source}: has both [model] and [[shapes]]; leave one of them out")
    lora, tokens, search, run = (
        read_table(f"{source}: [{name}]", content.get(name, {}), checks)
        for name, checks in TABLES.items()
    )
    axes = _read_space(f"{source}: [search.space", search.pop("space", {}))
    time_budget_s = search.pop("time_budget", None)
    search |= effort_beside(search)
    if "model" in content:
        model = _read_model(f"{source}: [model]", content["model"], folder)
        shapes = {"model": model, "shape_tables": {}, "tokens": tokens.pop("counts", AUTO)}
    else:
        tables = _read_shape_tables(source, content.get("shapes", []))
        shapes = {"model": None, "shape_tables": tables, "tokens": tokens.pop("counts", ())}
    given = {"lora": lora, "limits": tokens, "axes": axes, "time_budget_s": time_budget_s}
    return {**given, **shapes, **search, **run}


def _read_toml(source: str, text: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{source}: not TOML: {error}; correct it there") from error
    except RecursionError:
        raise StudyFileError(
            f"{source}: lists or tables are nested too deep to be read; a study file needs four "
            "levels"
        ) from None
    except ValueError:  # a whole number of more digits than Python reads
        raise StudyFileError(
            f"{source}: a number has thousands of digits; a number is at most {LARGEST_SIZE}"
        ) from None
    return content


def parse_duration(text: object) -> int:
    """Seconds of a duration such as ``90s``, ``10m`` or ``1h30m``.

    Raises:
        InputError: The value does not have that form, or the duration is 0.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise InputError(f"must be a duration such as 90s, 10m or 1h30m: got {shown(text)}")
    if total > LARGEST_SIZE:
        raise InputError(f"must be {LARGEST_SIZE} seconds or less: got {shown(text)}")
    return total


# --------------------------------------------------------------------------- checks of one value
# Each returns the value as the plan keeps it, or raises InputError: what it must be, what it is.

_Check = Callable[[Any], Any]


def _at_least(smallest: int) -> _Check:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise InputError(f"must be a whole number of at least {smallest}: got {shown(value)}")
        if value > LARGEST_SIZE:
            raise InputError(f"must be {LARGEST_SIZE} or less: got {shown(value)}")
        return value

    return check


def _one_of(choices: Collection[object]) -> _Check:
    def check(value: object) -> object:
        # True equals 1, which is a rank; rank = true is not.
        if isinstance(value, bool) or value not in list(choices):
            raise InputError(f"must be one of {', '.join(map(str, choices))}: got {shown(value)}")
        return value

    return check


def gpus(value: object) -> Gpus:
    """How many GPUs, ``ALL``, or their numbers; raises ``InputError`` for anything else."""
    numbers: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    smallest = 0 if isinstance(value, list | tuple) else 1
    is_right = all(
        isinstance(each, int) and not isinstance(each, bool) and smallest <= each <= LARGEST_SIZE
        for each in numbers
    )
    if value == ALL:
        return ALL
    if is_right and numbers and len(set(numbers)) == len(numbers):
        return tuple(numbers) if isinstance(value, list | tuple) else int(numbers[0])
    raise InputError(
        "must be how many GPUs to use, all, or which of them, each once and counted from 0, such "
        f"as [0, 2]: got {shown(value)}"
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"must be a text that is not empty: got {shown(value)}")
    if not value.isprintable():
        raise InputError(f"must be a text without control characters: got {shown(value)}")
    return value


def token_counts(value: object) -> tuple[int, ...] | str:
    """A list of batch sizes, or ``AUTO``; raises ``InputError`` for anything else."""
    if value == AUTO:
        return AUTO
    if not isinstance(value, list) or not value:
        raise InputError(
            f"must be a list of token counts, such as [1, 16], or auto: got {shown(value)}"
        )
    return tuple(map(_at_least(1), value))


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"must be true or false: got {shown(value)}")
    return value


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"must be a list of names, such as ['o_proj']: got {shown(value)}")
    return tuple(map(_text, value))


def _text_or_names(value: object) -> tuple[str, ...]:
    return (_text(value),) if isinstance(value, str) else _names(value)


def capture_sizes(value: object) -> tuple[int, ...]:
    """A list of batch sizes to capture; raises ``InputError`` for anything else."""
    if not isinstance(value, list) or not value:
        raise InputError(f"must be a list of batch sizes, such as [1, 16]: got {shown(value)}")
    return tuple(map(_at_least(1), value))


def release(value: object) -> str:
    """A release of vLLM that is not too old; raises ``InputError`` for anything else."""
    if not isinstance(value, str) or not RELEASE.fullmatch(value):
        raise InputError(f"must be a release of vLLM, such as {NEWEST_RELEASE}: got {shown(value)}")
    if not is_since(value, OLDEST_RELEASE):
        raise InputError(
            f"must be a release of vLLM that autotune knows, {OLDEST_RELEASE} to {NEWEST_RELEASE}: "
            f"got {shown(value)}"
        )
    return value


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"must be a table: got {shown(value)}")
    return value


TABLES: Mapping[str, dict[str, _Check]] = {
    "lora": {
        "max_loras": _at_least(1),
        "rank": _one_of(VLLM_RANKS),
        "active_loras": _at_least(1),
        "dtype": _one_of(DTYPE_BYTES),
    },
    "tokens": {
        "counts": token_counts,
        "max_num_batched_tokens": _at_least(1),
        "max_num_seqs": _at_least(1),
        "speculative_tokens": _at_least(1),
        "cudagraph_capture_sizes": capture_sizes,
        "max_cudagraph_capture_size": _at_least(1),
    },
    "search": {
        "trials": _at_least(1),
        "effort": _one_of(EFFORTS),
        "sampler": _one_of(SAMPLERS),
        "time_budget": parse_duration,
        "seed": _at_least(0),
        "warm_start": _text,
        "deterministic": _flag,
        "space": _table,
    },
    "run": {"kernels": _one_of(KERNELS), "gpus": gpus, "storage": _text, "output": _text},
}


MODEL_TABLE: Mapping[str, _Check] = {
    "config": _text,
    "tensor_parallel": _at_least(1),
    "fully_sharded": _flag,
    "expert_parallel": _flag,
    "mixed_moe_lora_format": _flag,
    "moe_shared_loras": _flag,
    "moe_backend": _one_of(MOE_BACKENDS),
    "data_parallel": _at_least(1),
    "dual_stream": _flag,
    "specialize_active_lora": _flag,
    "vllm": release,
    "ask_vllm": _flag,
    "target_modules": _names,
    "adapter": _text_or_names,
}


# --------------------------------------------------------------------------- reading tables


def read_table(place: str, table: object, checks: Mapping[str, _Check]) -> dict[str, Any]:
    """The values that a table gives, each checked."""
    given = checked(place, table, _table)
    check_keys(place, given, checks)
    return {key: checked(f"{place} {key}", value, checks[key]) for key, value in given.items()}


def checked(place: str, value: object, check: _Check) -> Any:  # noqa: ANN401 - the check's type
    """What the check returns for a value; its error becomes a ``StudyFileError`` with the place."""
    try:
        return check(value)
    except InputError as error:
        raise StudyFileError(f"{place}: {error}") from error


def check_keys(place: str, table: Mapping[str, object], known: Collection[str]) -> None:
    """Raise ``StudyFileError`` for an unknown key, with the known key that is nearest."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise StudyFileError(f"{place}: unknown key {shown(key)}; {advice}")


def checked_flags(checks: Mapping[str, _Check], **given: object) -> dict[str, Any]:
    """The flags that were given, that is not None, each checked."""
    return {
        name: checked(f"--{name.replace('_', '-')}", value, checks[name])
        for name, value in given.items()
        if value is not None
    }


def _read_model(place: str, table: object, folder: Path) -> ModelTable:
    try:
        return ModelTable.of_file(read_table(place, table, MODEL_TABLE), folder)
    except StudyFileError:
        raise
    except InputError as error:
        raise StudyFileError(f"{place}: {error}") from error


def _read_shape_tables(source: str, tables: object) -> dict[int, dict[str, Any]]:
    """The ``[[shapes]]`` tables by number; ``KernelShape`` checks their values later."""
    if not isinstance(tables, list) or not tables:
        raise StudyFileError(
            f"{source}: there must be at least one [[shapes]] table: "
            f"got {shown(tables)}; add one with op and hidden_size, or a [model] with its config"
        )
    for number, table in enumerate(tables, start=1):
        place = f"{source}: [[shapes]] no. {number}"
        check_keys(place, checked(place, table, _table), _SHAPE_KEYS)
        if "layer" in table:
            checked(f"{place} layer", table["layer"], _text)
    return dict(enumerate(tables, start=1))


def _read_space(place: str, table: dict[str, Any]) -> Axes:
    """The axes given for each op; ``place`` is the table's header without its bracket."""
    check_keys(f"{place}]", table, [op.value for op in LoraOp])
    return {op: _read_axes(f"{place}.{op.value}]", op, table.get(op.value, {})) for op in LoraOp}


def _read_axes(place: str, op: LoraOp, table: object) -> dict[str, tuple[int, ...]]:
    given = checked(place, table, _table)
    check_keys(place, given, default_axes(op))
    try:
        axes = complete_axes(op, given)
    except SpaceError as error:
        raise StudyFileError(f"{place}: {error}") from error
    return {name: axes[name] for name in given}
