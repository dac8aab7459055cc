"""StudyPlan: what a study file and the command line ask for."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.errors import InputError, StudyFileError, printable
from autotune.launch.op import LoraOp
from autotune.launch.release import NEWEST_RELEASE
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.plan import serving
from autotune.plan.batches import Batches
from autotune.plan.effort import EFFORTS, NORMAL, effort_beside
from autotune.plan.file import (
    ADAPTIVE,
    AUTO,
    TABLES,
    Axes,
    Gpus,
    checked_flags,
    read_fields,
    read_text,
    token_counts,
)
from autotune.plan.lacking import with_flags
from autotune.plan.model import ModelTable
from autotune.plan.shape_tables import (
    ShapeTables,
    kernels_of,
    missing_value,
    no_such_op,
    of_ops,
    without_values,
)
from autotune.plan.traced import Trace
from autotune.plan.workload import Kernel, Workload

#: The source of a study of a model that a flag names.
MODEL_FLAG = "--model"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """Which shapes to tune, how, and where the results go.

    Attributes:
        source: The study file, as messages name it.
        lora: ``[lora]``: values for the shapes that do not give their own.
        tokens: ``[tokens] counts``: the batch sizes of shapes without ``num_tokens``; ``AUTO`` for
            those of ``batches``.
        shape_tables: ``[[shapes]]``, each with its number in the file, from 1; empty with a model.
        model: ``[model]``, in place of ``[[shapes]]``; None without.
        trace: What a server looked up, in place of a model; None without.
        limits: The rest of ``[tokens]``: the limits of the server's batches that were given.
        ops: The ops to tune; None for all.
        recorded: The shapes that recordings hold: with ``AUTO`` all others are left out. None where
            a GPU measures.
        trials: Distinct configurations to measure for each shape.
        effort: One of ``EFFORTS``, which may end the search before; None to make all trials.
        sampler: One of ``SAMPLERS``.
        time_budget_s: Wall-clock limit of the whole run, seconds; None for none.
        seed: Of the sampler.
        warm_start: The URL of an older database that the search may learn from; None for none.
        deterministic: Whether only configurations that do not split k may be chosen.
        axes: ``[search.space]``: for every op the axes that were given.
        kernels: One of ``KERNELS``.
        gpus: How many GPUs measure, ``ALL``, or which by number; None for the first that is free.
        storage: The database's URL.
        output: The folder for vLLM's files.
    """

    source: str
    tokens: tuple[int, ...] | str
    lora: Mapping[str, Any] = field(default_factory=dict)
    shape_tables: ShapeTables = field(default_factory=dict)
    axes: Axes = field(default_factory=lambda: {op: {} for op in LoraOp})
    model: ModelTable | None = None
    trace: Trace | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    ops: frozenset[LoraOp] | None = None
    recorded: frozenset[KernelShape] | None = None
    trials: int = EFFORTS[NORMAL].trials
    effort: str | None = NORMAL
    sampler: str = ADAPTIVE
    time_budget_s: float | None = None
    seed: int = 0
    warm_start: str | None = None
    deterministic: bool = False
    kernels: str = "auto"
    gpus: Gpus | None = None
    storage: str = "sqlite:///autotune.db"
    output: str = "tuned"
    #: The workload once it was asked for, empty before: reading a model may need the network, and
    #: flags may still name another one.
    _workload: list[Workload] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model is None and self._missing_value() is None:
            _ = self.workload

    @classmethod
    def read(cls, path: Path) -> StudyPlan:
        """Read a study file.

        Shapes are checked only where they lack no value: flags may still give it.

        Raises:
            StudyFileError: The file cannot be read, or a key, a value or a shape in it is wrong.
        """
        source, text = printable(str(path)), read_text(path)
        return cls(source=source, **read_fields(source, text, path.parent))

    @classmethod
    def quickstart(cls) -> StudyPlan:
        """The study that a run with neither study nor model tunes: Llama-3.1-8B's layers."""
        file = importlib.resources.files("autotune") / "quickstart.toml"
        source, text = "the quick-start study", file.read_text(encoding="utf-8")
        return cls(source=source, **read_fields(source, text, Path()))

    @classmethod
    def of_model(cls, config: str) -> StudyPlan:
        """The study of a model alone: its batch sizes are ``AUTO``."""
        return cls(
            source=MODEL_FLAG,
            tokens=AUTO,
            model=ModelTable(config=config),
        )

    @classmethod
    def of_trace(cls, trace: Trace) -> StudyPlan:
        """The study of what a server looked up: its batch sizes are ``AUTO``, of those asked for.

        Raises:
            StudyFileError: vLLM would refuse such batches.
        """
        return cls(
            source=trace.source,
            tokens=AUTO,
            trace=trace,
            limits=trace.limits,
        )

    @classmethod
    def of_shapes(
        cls, shapes: Iterable[KernelShape], *, source: str = "the recording"
    ) -> StudyPlan:
        """The study of shapes that are known already, such as those of a recording."""
        return cls(
            source=source,
            tokens=(),
            shape_tables={n: shape.as_dict() for n, shape in enumerate(shapes, start=1)},
        )

    @property
    def workload(self) -> Workload:
        """Every shape, and what launches it; a model is read the first time only.

        Raises:
            StudyFileError: A shape lacks a value, vLLM would never ask for it, or vLLM cannot tell
                it from another.
        """
        if not self._workload:
            self._workload.append(self._read_workload())
        return self._workload[0]

    @property
    def shapes(self) -> tuple[KernelShape, ...]:
        """Every shape once, in the file's order, tokens innermost; raises as ``workload``."""
        return tuple(each.shape for each in self.workload.launched)

    @property
    def looked_up(self) -> tuple[KernelShape, ...]:
        """The shapes to look up: all of a trace, else ``shapes``; raises as ``workload``."""
        if self.trace is None or not self.is_auto:
            return self.shapes
        asked = (each.shape for each in self.trace.asked)
        return tuple(each for each in asked if self.ops is None or each.op in self.ops)

    @property
    def layers(self) -> dict[KernelShape, str]:
        """Every shape with the names of its layers, such as ``o, down``; raises as ``workload``."""
        return {each.shape: ", ".join(each.names) for each in self.workload.launched}

    @property
    def runs(self) -> dict[KernelShape, int]:
        """Launches of each shape in a forward pass, 0 without a model; raises as ``workload``."""
        return {each.shape: each.runs for each in self.workload.launched}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of the shapes, in a line each; raises as ``workload``."""
        counts = [shape.num_tokens // self._gathered_from(shape) for shape in self.shapes]
        return (*self.batches.notes(counts), *self.workload.notes)

    @property
    def server_release(self) -> str | None:
        """The release of the server that is meant: of a trace, or as it was given; else None."""
        named = self.model.vllm if self.model is not None else None
        return (self.trace.release or None) if self.trace is not None else named

    @property
    def batches(self) -> Batches:
        """The batch sizes of the server.

        Raises:
            StudyFileError: vLLM would refuse the limits that were given.
        """
        release = self.model.release if self.model is not None else NEWEST_RELEASE
        try:
            return Batches.of(**self.limits, release=release)
        except InputError as error:
            if self.source == MODEL_FLAG:
                raise StudyFileError(with_flags(str(error), TABLES["tokens"])) from error
            raise StudyFileError(f"{self.source}: [tokens]: {error}") from error

    @property
    def is_auto(self) -> bool:
        """Whether the batch sizes are those that vLLM captures, thinned."""
        return self.tokens == AUTO

    def captured(self, kind: KernelShape) -> list[KernelShape]:
        """A shape at every batch size that vLLM captures, or did capture where it was traced."""
        if self.trace is not None:
            return self.trace.captured(kind.without_batch)
        times = self._gathered_from(kind)
        return serving.captured(self.batches, self.workload, kind, gathered_from=times)

    def _gathered_from(self, kind: KernelShape) -> int:
        return self.model.gathered_from(kind) if self.model is not None else 1

    @property
    def served(self) -> dict[KernelShape, WarmedSizes]:
        """Every kernel of the server with its batch sizes; empty where shapes are given by hand."""
        is_known = self.model is not None or self.trace is not None or self.is_auto
        kinds = dict.fromkeys(shape.without_batch for shape in self.shapes if is_known)
        return {kind: self.warmed(kind) for kind in kinds}

    def warmed(self, kind: KernelShape) -> WarmedSizes:
        """The batch sizes that a server launches a shape at, at its start and afterwards."""
        kind = kind.without_batch
        if self.trace is not None:
            return serving.of_trace(self.trace, kind)
        times = self._gathered_from(kind)
        return serving.of_batches(self.batches, self.workload, kind, gathered_from=times)

    @property
    def between(self) -> list[KernelShape]:
        """The shapes to look at once the others are tuned: captured batch sizes without a row.

        Empty where the batch sizes were given.
        """
        if not self.is_auto:
            return []
        kinds = dict.fromkeys(shape.without_batch for shape in self.shapes)
        tuned = set(self.shapes)
        return [shape for kind in kinds for shape in self.captured(kind) if shape not in tuned]

    def answered_by(self, shapes: Iterable[KernelShape]) -> StudyPlan:
        """The plan for recordings that hold these shapes, where nothing else can be measured."""
        return replace(self, recorded=frozenset(shapes))

    def with_model(
        self, table: Mapping[str, Any], limits: Mapping[str, Any], *, source: str = "--model"
    ) -> StudyPlan:
        """The plan with the flags of a model applied; to be called before ``override``.

        Args:
            table: The values of ``[model]`` that flags gave.
            limits: The limits in ``[tokens]`` that flags gave.
            source: What the flags are called in messages.

        Raises:
            StudyFileError: There are flags of a model, and the study has ``[[shapes]]`` instead.
        """
        plan = replace(self, limits={**self.limits, **limits})
        if not table:
            return plan
        if self.model is not None:
            by_flag = self.model.is_adapter_flag or "adapter" in table
            return replace(plan, model=replace(self.model, **table, is_adapter_flag=by_flag))
        raise StudyFileError(
            f"{source}: {self.source} gives its shapes by hand, without a [model]; give --model "
            "and no study, or leave flags of a model out, such as --vllm and --tp"
        )

    def override(  # noqa: PLR0913 - one for every flag
        self,
        *,
        max_loras: int | None = None,
        rank: int | None = None,
        active_loras: int | None = None,
        tokens: Sequence[int] | str | None = None,
        ops: Collection[LoraOp] | None = None,
        trials: int | None = None,
        effort: str | None = None,
        time_budget_s: float | None = None,
        sampler: str | None = None,
        kernels: str | None = None,
        gpus: Gpus | Sequence[int] | None = None,
        storage: str | None = None,
        output: str | None = None,
        seed: int | None = None,
        warm_start: str | None = None,
        deterministic: bool | None = None,
    ) -> StudyPlan:
        """The plan with command-line flags applied; None leaves what the file says.

        Each flag replaces the attribute of its name, ``max_loras``, ``rank`` and ``active_loras``
        those in ``lora``, and goes before what a single ``[[shapes]]`` table says. ``trials``
        without an ``effort`` are all made.

        Raises:
            StudyFileError: A flag's value is out of range, or no shape is left.
        """
        lora = checked_flags(
            TABLES["lora"], max_loras=max_loras, rank=rank, active_loras=active_loras
        )
        if self.trace is not None and lora:
            raise StudyFileError(
                f"{self.source} says {' and '.join(lora)}, as the server had it: "
                f"got {', '.join(map(str, lora.values()))}; leave it out"
            )
        listed = tokens if tokens is None or isinstance(tokens, str) else list(tokens)
        counts = checked_flags({"tokens": token_counts}, tokens=listed)
        plain = checked_flags(
            TABLES["search"] | TABLES["run"],
            trials=trials,
            effort=effort,
            sampler=sampler,
            seed=seed,
            kernels=kernels,
            gpus=gpus,
            storage=storage,
            output=output,
            warm_start=warm_start,
            deterministic=deterministic,
        )
        tables = self.shape_tables
        if ops is not None and tables:
            tables = of_ops(tables, ops, self.source)
        replaced = {*lora, *(["num_tokens"] if counts else [])}
        return replace(
            self,
            lora={**self.lora, **lora},
            shape_tables=without_values(tables, replaced),
            ops=self.ops if ops is None else frozenset(ops),
            time_budget_s=self.time_budget_s if time_budget_s is None else time_budget_s,
            **counts,
            **(plain | effort_beside(plain)),
        )

    def _missing_value(self) -> str | None:
        """The values that a shape needs and nothing gives, as a message says it."""
        if self.trace is not None:
            return None
        if self.model is not None:
            return self.model.missing_value(self.lora, is_flag=self.source == MODEL_FLAG)
        return missing_value(self.shape_tables, self.lora, has_tokens=bool(self.tokens))

    def _read_workload(self) -> Workload:
        missing = self._missing_value()
        if missing is not None:
            raise StudyFileError(f"{self.source}: {missing}")
        batches = self.batches
        try:
            kernels = self._kernels()
            found = Workload.of(
                kernels,
                batches.grid if isinstance(self.tokens, str) else self.tokens,
                most_sampled=batches.most_sampled,
                recorded=self.recorded if self.is_auto else None,
                may_share=bool(self.model or self.trace),
            )
        except StudyFileError:
            raise
        except InputError as error:
            source = self.model.place_of(error, self.source) if self.model else self.source
            raise StudyFileError(f"{source}: {error}") from error
        of_model = self.model.notes(kernels) if self.model is not None else ()
        of_trace = self.trace.notes if self.trace is not None else ()
        return replace(found, notes=(*of_model, *of_trace, *found.notes))

    def _kernels(self) -> list[Kernel]:
        """The kernels of the model, of the trace or of the ``[[shapes]]`` tables."""
        if self.model is not None:
            kernels, where = self.model.kernels(self.lora), f"the model {self.model.config}"
        elif self.trace is not None:
            kernels, where = self.trace.kernels(rows=self.is_auto), self.source
        else:
            return kernels_of(self.shape_tables, self.lora)
        kept = [each for each in kernels if self.ops is None or each.shape.op in self.ops]
        if not kept:
            there = dict.fromkeys(each.shape.op.value for each in kernels)
            raise no_such_op(self.ops or (), where, there)
        return kept
