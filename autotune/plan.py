"""StudyPlan: what a study file and the command line ask for. Knows nothing of searching."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from autotune.effort import EFFORTS, NORMAL
from autotune.errors import ShapeError, StudyFileError
from autotune.ops import LoraOp
from autotune.shapes import KernelShape
from autotune.studyfile import (
    TABLES,
    Axes,
    checked_flags,
    read_shape_tables,
    read_space,
    read_table,
    read_toml,
    token_counts,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """Which shapes to tune, how, and where the results go.

    Attributes:
        source: The study file, as messages name it.
        lora: ``[lora]``: what every shape takes that does not say otherwise.
        tokens: ``[tokens] counts``: one shape each, for the shapes that name no ``num_tokens``.
        shape_tables: ``[[shapes]]``, each with its number in the file, from 1.
        trials: Distinct configurations to measure for each shape.
        effort: One of ``EFFORTS``: the search may stop before; None for just as many trials.
        sampler: One of ``SAMPLERS``.
        time_budget_s: Wall-clock limit of the whole run, seconds; None for none.
        seed: Of the sampler.
        warm_start: An older database's URL, whose shapes the search may learn from; None for none.
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
    trials: int = EFFORTS[NORMAL].trials
    effort: str | None = NORMAL
    sampler: str = "adaptive"
    time_budget_s: float | None = None
    seed: int = 0
    warm_start: str | None = None
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
    def of_shapes(
        cls, shapes: Iterable[KernelShape], *, source: str = "the recording"
    ) -> StudyPlan:
        """The study of shapes that come from elsewhere, such as a recording."""
        return cls(
            source=source,
            lora={},
            tokens=(),
            shape_tables={n: shape.as_dict() for n, shape in enumerate(shapes, start=1)},
            axes={op: {} for op in LoraOp},
        )

    @classmethod
    def _of_text(cls, text: str, source: str) -> StudyPlan:
        content = read_toml(source, text)
        lora, tokens, search, run = (
            read_table(f"{source}: [{name}]", content.get(name, {}), checks)
            for name, checks in TABLES.items()
        )
        axes = read_space(f"{source}: [search.space", search.pop("space", {}))
        return cls(
            source=source,
            lora=lora,
            tokens=tokens.get("counts", ()),
            shape_tables=read_shape_tables(source, content.get("shapes", [])),
            axes=axes,
            time_budget_s=search.pop("time_budget", None),
            **(search | _effort_of(search)),
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

    @property
    def runs(self) -> dict[KernelShape, int]:
        """How often a forward pass launches each shape; 0 where no model says so."""
        return dict.fromkeys(self.layers, 0)

    def override(  # noqa: PLR0913 - one for every flag
        self,
        *,
        max_loras: int | None = None,
        rank: int | None = None,
        tokens: Sequence[int] | None = None,
        ops: Collection[LoraOp] | None = None,
        trials: int | None = None,
        effort: str | None = None,
        time_budget_s: float | None = None,
        sampler: str | None = None,
        kernels: str | None = None,
        storage: str | None = None,
        output: str | None = None,
        seed: int | None = None,
        warm_start: str | None = None,
    ) -> StudyPlan:
        """The plan with command-line flags applied; None leaves what the file says.

        A flag also goes before what a single ``[[shapes]]`` table says.

        Args:
            max_loras: As given to vLLM.
            rank: The server's ``--max-lora-rank``.
            tokens: Batch sizes.
            ops: Only these are tuned.
            trials: Distinct configurations to measure for each shape; just as many, unless an
                effort is given, too.
            effort: One of ``EFFORTS``.
            time_budget_s: Wall-clock limit of the whole run, seconds.
            sampler: One of ``SAMPLERS``.
            kernels: One of ``KERNELS``.
            storage: The database's URL.
            output: The folder for vLLM's files.
            seed: Of the sampler.
            warm_start: An older database's URL.

        Raises:
            StudyFileError: A flag's value is out of range, or no shape is left.
        """
        lora = checked_flags(TABLES["lora"], max_loras=max_loras, rank=rank)
        counts = checked_flags(
            {"tokens": token_counts}, tokens=None if tokens is None else list(tokens)
        )
        plain = checked_flags(
            TABLES["search"] | TABLES["run"],
            trials=trials,
            effort=effort,
            sampler=sampler,
            seed=seed,
            kernels=kernels,
            storage=storage,
            output=output,
            warm_start=warm_start,
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
            **(plain | _effort_of(plain)),
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


def _effort_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What trials and effort a file or flags ask for by giving both, one or none of them."""
    if given.get("effort") is not None:
        return {"trials": EFFORTS[given["effort"]].trials} if "trials" not in given else {}
    return {"effort": None} if "trials" in given else {}


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
