"""StudyPlan: what a study file and the command line ask for. Knows nothing of searching."""

from __future__ import annotations

import difflib
import importlib.resources
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from autotune.errors import InputError, ShapeError, SpaceError, StudyFileError
from autotune.ops import VLLM_RANKS, LoraOp
from autotune.shapes import DTYPE_BYTES, KernelShape
from autotune.space import complete_axes, default_axes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

SAMPLERS = ("tpe", "gp", "random", "exhaustive")
KERNELS = ("auto", "builtin")

_SHAPE_KEYS = (*(field.name for field in fields(KernelShape)), "layer")
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)

#: The axes that the user gave, per op; what is not given is the runner's to choose.
Axes = Mapping[LoraOp, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """Which shapes to tune, how, and where the results go.

    Attributes:
        source: The study file, as messages name it.
        lora: ``[lora]``: what every shape takes that does not say otherwise.
        tokens: ``[tokens] counts``: one shape each, for the shapes that name no ``num_tokens``.
        shape_tables: ``[[shapes]]``, each with its number in the file, from 1.
        trials: Distinct configurations to measure for each shape.
        sampler: One of ``SAMPLERS``.
        time_budget_s: Wall-clock limit of the whole run, seconds; None for none.
        seed: Of the sampler.
        axes: ``[search.space]``: for every op the axes that were given.
        kernels: One of ``KERNELS``.
        storage: The database's URL.
        output: The folder for vLLM's files.
    """

    source: str
    lora: Mapping[str, Any]
    tokens: tuple[int, ...]
    shape_tables: Mapping[int, Mapping[str, Any]]
    axes: Axes
    trials: int = 200
    sampler: str = "tpe"
    time_budget_s: float | None = None
    seed: int = 0
    kernels: str = "auto"
    storage: str = "sqlite:///autotune.db"
    output: str = "tuned"

    def __post_init__(self) -> None:
        if self._gap() is None:
            _ = self.layers

    @classmethod
    def read(cls, path: Path) -> StudyPlan:
        """Read a study file.

        Flags may still give what its shapes lack, so only a full set of shapes is checked here.

        Raises:
            StudyFileError: The file cannot be read, or asks for something that cannot be.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise StudyFileError(
                f"cannot read the study file {path}: {error.strerror}; check the path"
            ) from error
        except UnicodeDecodeError as error:
            raise StudyFileError(f"{path}: not UTF-8: {error}; save it as UTF-8") from error
        return cls._of_text(text, str(path))

    @classmethod
    def quickstart(cls) -> StudyPlan:
        """The study that is tuned where nothing else is asked for: Llama-3.1-8B's layers."""
        file = importlib.resources.files("autotune") / "quickstart.toml"
        return cls._of_text(file.read_text(encoding="utf-8"), "the quick-start study")

    @classmethod
    def of_shapes(cls, shapes: Iterable[KernelShape]) -> StudyPlan:
        """The study of shapes that come from elsewhere, such as a recording."""
        return cls(
            source="the recording",
            lora={},
            tokens=(),
            shape_tables={n: shape.as_dict() for n, shape in enumerate(shapes, start=1)},
            axes={op: {} for op in LoraOp},
        )

    @classmethod
    def _of_text(cls, text: str, source: str) -> StudyPlan:
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise StudyFileError(f"{source}: not TOML: {error}; correct it there") from error
        _check_keys(source, content, ("lora", "tokens", "shapes", "search", "run"))
        lora, tokens, search, run = (
            _read_table(f"{source}: [{name}]", content.get(name, {}), checks)
            for name, checks in _TABLES.items()
        )
        axes = _read_space(f"{source}: [search.space", search.pop("space", {}))
        return cls(
            source=source,
            lora=lora,
            tokens=tokens.get("counts", ()),
            shape_tables=_read_shape_tables(source, content.get("shapes", [])),
            axes=axes,
            time_budget_s=search.pop("time_budget", None),
            **search,
            **run,
        )

    @property
    def shapes(self) -> tuple[KernelShape, ...]:
        """Every shape once, in the order of the file, tokens innermost.

        Raises:
            StudyFileError: A shape cannot be, lacks a value, or shares its keys with another.
        """
        return tuple(self.layers)

    @property
    def layers(self) -> dict[KernelShape, str]:
        """Every shape with the names of its layers, such as ``o, down``; raises as ``shapes``."""
        gap = self._gap()
        if gap is not None:
            raise StudyFileError(f"{self.source}: {gap}")
        names: dict[KernelShape, list[str]] = {}
        places: dict[tuple[str, tuple[int, ...]], tuple[int, KernelShape]] = {}
        for number, shape in self._derived():
            place = (shape.file_name("gpu"), shape.lookup_key)
            other, first = places.setdefault(place, (number, shape))
            if first != shape:
                raise StudyFileError(f"{self.source}: {_clash(number, shape, other, first)}")
            layer = self.shape_tables[number].get("layer")
            known = names.setdefault(shape, [])
            if layer is not None and layer not in known:
                known.append(layer)
        return {shape: ", ".join(layers) for shape, layers in names.items()}

    def override(  # noqa: PLR0913 - one for every flag
        self,
        *,
        max_loras: int | None = None,
        rank: int | None = None,
        tokens: Sequence[int] | None = None,
        ops: Collection[LoraOp] | None = None,
        trials: int | None = None,
        time_budget_s: float | None = None,
        sampler: str | None = None,
        kernels: str | None = None,
        storage: str | None = None,
        output: str | None = None,
        seed: int | None = None,
    ) -> StudyPlan:
        """The plan with command-line flags applied; None leaves what the file says.

        A flag also goes before what a single ``[[shapes]]`` table says.

        Args:
            max_loras: As given to vLLM.
            rank: The server's ``--max-lora-rank``.
            tokens: Batch sizes.
            ops: Only these are tuned.
            trials: Distinct configurations to measure for each shape.
            time_budget_s: Wall-clock limit of the whole run, seconds.
            sampler: One of ``SAMPLERS``.
            kernels: One of ``KERNELS``.
            storage: The database's URL.
            output: The folder for vLLM's files.
            seed: Of the sampler.

        Raises:
            StudyFileError: A flag's value is out of range, or no shape is left.
        """
        lora = _flags(_TABLES["lora"], max_loras=max_loras, rank=rank)
        counts = _flags({"tokens": _counts}, tokens=None if tokens is None else list(tokens))
        plain = _flags(
            _TABLES["search"] | _TABLES["run"],
            trials=trials,
            sampler=sampler,
            seed=seed,
            kernels=kernels,
            storage=storage,
            output=output,
        )
        replaced = {*lora, *(["num_tokens"] if counts else [])}
        return replace(
            self,
            lora={**self.lora, **lora},
            shape_tables={
                number: {key: value for key, value in table.items() if key not in replaced}
                for number, table in self._tables_of(ops).items()
            },
            time_budget_s=self.time_budget_s if time_budget_s is None else time_budget_s,
            **counts,
            **plain,
        )

    def _tables_of(self, ops: Collection[LoraOp] | None) -> Mapping[int, Mapping[str, Any]]:
        """The ``[[shapes]]`` tables of these ops."""
        if ops is None:
            return self.shape_tables
        kept = {n: table for n, table in self.shape_tables.items() if table.get("op") in tuple(ops)}
        if not kept:
            there = sorted({str(table.get("op")) for table in self.shape_tables.values()})
            raise StudyFileError(
                f"--op: no shape of {', '.join(op.value for op in ops)} in {self.source}; "
                f"it has {', '.join(there)}"
            )
        return kept

    def _gap(self) -> str | None:
        """The first value that a shape needs and nothing gives."""
        for number, table in self.shape_tables.items():
            for name in ("max_loras", "rank"):
                if name not in table and name not in self.lora:
                    flag = name.replace("_", "-")
                    return (
                        f"[[shapes]] no. {number} has no {name}: add it to [lora] or give --{flag}"
                    )
            if "num_tokens" not in table and not self.tokens:
                return (
                    f"[[shapes]] no. {number} has no num_tokens: "
                    "add [tokens] counts = [1, 16] or give --tokens"
                )
        return None

    def _derived(self) -> Iterator[tuple[int, KernelShape]]:
        """Every shape of every table, with the table's number; repeats included."""
        for number, table in self.shape_tables.items():
            values = {**self.lora, **table}
            values.pop("layer", None)
            own = "num_tokens" in values
            for count in (values["num_tokens"],) if own else self.tokens:
                place = f"{self.source}: [[shapes]] no. {number}"
                yield number, _shape(place, {**values, "num_tokens": count})


def parse_duration(text: object) -> int:
    """Seconds of a duration such as ``90s``, ``10m`` or ``1h30m``.

    Raises:
        InputError: It is not of that form, or is nothing.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise InputError(f"must be a duration such as 90s, 10m or 1h30m: got {text!r}")
    return total


# --------------------------------------------------------------------------- checks of one value
# Each answers the value as it is kept, or raises InputError with what it must be and what it is.

_Check = Callable[[Any], Any]


def _at_least(smallest: int) -> _Check:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise InputError(f"must be a whole number of at least {smallest}: got {value!r}")
        return value

    return check


def _one_of(choices: Collection[object]) -> _Check:
    def check(value: object) -> object:
        # A bool equals 0 or 1, and rank = true is no rank.
        if isinstance(value, bool) or value not in list(choices):
            raise InputError(f"must be one of {', '.join(map(str, choices))}: got {value!r}")
        return value

    return check


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"must be a text that is not empty: got {value!r}")
    return value


def _counts(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"must be a list of token counts, such as [1, 16]: got {value!r}")
    return tuple(map(_at_least(1), value))


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"must be a table: got {value!r}")
    return value


_TABLES: Mapping[str, dict[str, _Check]] = {
    "lora": {
        "max_loras": _at_least(1),
        "rank": _one_of(VLLM_RANKS),
        "active_loras": _at_least(1),
        "dtype": _one_of(DTYPE_BYTES),
    },
    "tokens": {"counts": _counts},
    "search": {
        "trials": _at_least(1),
        "sampler": _one_of(SAMPLERS),
        "time_budget": parse_duration,
        "seed": _at_least(0),
        "space": _table,
    },
    "run": {"kernels": _one_of(KERNELS), "storage": _text, "output": _text},
}


# --------------------------------------------------------------------------- reading tables


def _read_table(place: str, table: object, checks: Mapping[str, _Check]) -> dict[str, Any]:
    """The values that a table gives, each checked."""
    given = _checked(place, table, _table)
    _check_keys(place, given, checks)
    return {key: _checked(f"{place} {key}", value, checks[key]) for key, value in given.items()}


def _checked(place: str, value: object, check: _Check) -> Any:  # noqa: ANN401 - the check's type
    try:
        return check(value)
    except InputError as error:
        raise StudyFileError(f"{place}: {error}") from error


def _check_keys(place: str, table: Mapping[str, object], known: Collection[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise StudyFileError(f"{place}: unknown key {key!r}; {advice}")


def _flags(checks: Mapping[str, _Check], **given: object) -> dict[str, Any]:
    """The flags that were given, each checked."""
    return {
        name: _checked(f"--{name.replace('_', '-')}", value, checks[name])
        for name, value in given.items()
        if value is not None
    }


def _read_shape_tables(source: str, tables: object) -> dict[int, dict[str, Any]]:
    """The ``[[shapes]]`` tables by number; their values are checked once they are complete."""
    if not isinstance(tables, list) or not tables:
        raise StudyFileError(
            f"{source}: there must be at least one [[shapes]] table: "
            f"got {tables!r}; add one with op and hidden_size"
        )
    for number, table in enumerate(tables, start=1):
        place = f"{source}: [[shapes]] no. {number}"
        _check_keys(place, _checked(place, table, _table), _SHAPE_KEYS)
        if "layer" in table:
            _checked(f"{place} layer", table["layer"], _text)
    return dict(enumerate(tables, start=1))


def _read_space(place: str, table: dict[str, Any]) -> Axes:
    """The axes given for each op; ``place`` is the table's header without its bracket."""
    _check_keys(f"{place}]", table, [op.value for op in LoraOp])
    return {op: _read_axes(f"{place}.{op.value}]", op, table.get(op.value, {})) for op in LoraOp}


def _read_axes(place: str, op: LoraOp, table: object) -> dict[str, tuple[int, ...]]:
    given = _checked(place, table, _table)
    _check_keys(place, given, default_axes(op))
    try:
        axes = complete_axes(op, given)
    except SpaceError as error:
        raise StudyFileError(f"{place}: {error}") from error
    return {name: axes[name] for name in given}


def _shape(place: str, values: Mapping[str, Any]) -> KernelShape:
    try:
        return KernelShape.from_mapping(values)
    except ShapeError as error:
        raise StudyFileError(f"{place}: {error}") from error


def _clash(number: int, shape: KernelShape, other: int, first: KernelShape) -> str:
    """Says that vLLM cannot tell two shapes apart, and by what they differ."""
    differences = ", ".join(
        f"{field.name} {getattr(first, field.name)} and {getattr(shape, field.name)}"
        for field in fields(KernelShape)
        if getattr(first, field.name) != getattr(shape, field.name)
    )
    keys = "/".join(map(str, shape.lookup_key))
    return (
        f"[[shapes]] no. {number}: vLLM looks it up as {shape.op.value} {keys}, like no. {other}, "
        f"and the two differ: {differences}; tune them in two studies with two outputs"
    )
