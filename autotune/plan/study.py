"""StudyPlan: what a study file and the command line ask for. Knows nothing of searching."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from autotune.errors import InputError, StudyFileError
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.batches import Batches
from autotune.plan.effort import EFFORTS, NORMAL
from autotune.plan.file import (
    AUTO,
    MODEL_TABLE,
    TABLES,
    Axes,
    checked_flags,
    read_shape_tables,
    read_space,
    read_table,
    read_toml,
    token_counts,
)
from autotune.plan.model import ModelTable
from autotune.plan.workload import Kernel, Server, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """Which shapes to tune, how, and where the results go.

    Attributes:
        source: The study file, as messages name it.
        lora: ``[lora]``: what every shape takes that does not say otherwise.
        tokens: ``[tokens] counts``: one shape each, for the shapes that name no ``num_tokens``;
            ``AUTO`` for those of ``batches``.
        shape_tables: ``[[shapes]]``, each with its number in the file, from 1.
        model: ``[model]``, in place of ``[[shapes]]``.
        limits: The rest of ``[tokens]``: the limits of the server's batches that were given.
        ops: Only these are tuned; None for all.
        recorded: Where shapes are answered from recordings, what they hold: with ``AUTO`` nothing
            else is asked for.
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
    tokens: tuple[int, ...] | str
    shape_tables: Mapping[int, Mapping[str, Any]]
    axes: Axes
    model: ModelTable | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    ops: frozenset[LoraOp] | None = None
    recorded: frozenset[KernelShape] | None = None
    trials: int = EFFORTS[NORMAL].trials
    effort: str | None = NORMAL
    sampler: str = "adaptive"
    time_budget_s: float | None = None
    seed: int = 0
    warm_start: str | None = None
    kernels: str = "auto"
    storage: str = "sqlite:///autotune.db"
    output: str = "tuned"
    #: Nothing, until it was asked for: a model may be far away, and flags may name another one.
    _workload: list[Workload] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model is None and self._gap() is None:
            _ = self.workload

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
        return cls._of_text(text, str(path), path.parent)

    @classmethod
    def quickstart(cls) -> StudyPlan:
        """The study that is tuned where nothing else is asked for: Llama-3.1-8B's layers."""
        file = importlib.resources.files("autotune") / "quickstart.toml"
        return cls._of_text(file.read_text(encoding="utf-8"), "the quick-start study", Path())

    @classmethod
    def of_model(cls, config: str) -> StudyPlan:
        """The study of a model with nothing else said: its batch sizes are ``AUTO``."""
        return cls(
            source="--model",
            lora={},
            tokens=AUTO,
            shape_tables={},
            axes={op: {} for op in LoraOp},
            model=ModelTable(config=config),
        )

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
    def _of_text(cls, text: str, source: str, folder: Path) -> StudyPlan:
        content = read_toml(source, text)
        lora, tokens, search, run = (
            read_table(f"{source}: [{name}]", content.get(name, {}), checks)
            for name, checks in TABLES.items()
        )
        axes = read_space(f"{source}: [search.space", search.pop("space", {}))
        model = None
        if "model" in content:
            model = _model(f"{source}: [model]", content["model"], folder)
        return cls(
            source=source,
            lora=lora,
            tokens=tokens.pop("counts", () if model is None else AUTO),
            limits=tokens,
            model=model,
            shape_tables={} if model else read_shape_tables(source, content.get("shapes", [])),
            axes=axes,
            time_budget_s=search.pop("time_budget", None),
            **(search | _effort_of(search)),
            **run,
        )

    @property
    def workload(self) -> Workload:
        """Every shape, and what launches it; a model is read once, and then known.

        Raises:
            StudyFileError: A shape cannot be, lacks a value, or shares its keys with another.
        """
        if not self._workload:
            self._workload.append(self._read_workload())
        return self._workload[0]

    @property
    def shapes(self) -> tuple[KernelShape, ...]:
        """Every shape once, in the order of the file, tokens innermost; raises as ``workload``."""
        return tuple(each.shape for each in self.workload.launched)

    @property
    def layers(self) -> dict[KernelShape, str]:
        """Every shape with the names of its layers, such as ``o, down``; raises as ``workload``."""
        return {each.shape: ", ".join(each.names) for each in self.workload.launched}

    @property
    def runs(self) -> dict[KernelShape, int]:
        """How often a forward pass launches each shape; 0 where no model says so."""
        return {each.shape: each.runs for each in self.workload.launched}

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of a model's shapes, in a line each; raises as ``workload``."""
        return self.workload.notes

    @property
    def batches(self) -> Batches:
        """The batch sizes of the server.

        Raises:
            StudyFileError: vLLM would refuse its limits.
        """
        try:
            return Batches.of(**self.limits)
        except InputError as error:
            raise StudyFileError(f"{self.source}: [tokens]: {error}") from error

    @property
    def is_auto(self) -> bool:
        """Whether the batch sizes are those that vLLM captures, thinned."""
        return self.tokens == AUTO

    def captured(self, kind: KernelShape) -> list[KernelShape]:
        """A shape at every batch size that vLLM captures.

        Logits are of sampled tokens, at most one a sequence: their shapes stop there.
        """
        is_sampled = kind.without_batch in self.workload.sampled
        most = self.batches.max_num_seqs if is_sampled else None
        sizes = self.batches.captured
        return [replace(kind, num_tokens=n) for n in sizes if most is None or n <= most]

    @property
    def between(self) -> list[KernelShape]:
        """The shapes that are looked at once the others are tuned, at batch sizes without a row.

        None where the batch sizes were given.
        """
        if not self.is_auto:
            return []
        kinds = dict.fromkeys(shape.without_batch for shape in self.shapes)
        tuned = set(self.shapes)
        return [shape for kind in kinds for shape in self.captured(kind) if shape not in tuned]

    def answered_by(self, shapes: Iterable[KernelShape]) -> StudyPlan:
        """The plan where these shapes are all that can be measured."""
        return replace(self, recorded=frozenset(shapes))

    def with_model(
        self, table: Mapping[str, Any], limits: Mapping[str, int], *, source: str = "--model"
    ) -> StudyPlan:
        """The plan with the flags of a model applied, before the others are.

        Args:
            table: ``[model]``, as far as flags gave it.
            limits: The limits of ``[tokens]``, likewise.
            source: What the flags are called in messages.

        Raises:
            StudyFileError: The study has ``[[shapes]]``, or the flags have no model.
        """
        plan = replace(self, limits={**self.limits, **limits})
        if not table:
            return plan
        if self.model is not None:
            return replace(plan, model=replace(self.model, **table))
        raise StudyFileError(
            f"{source}: {self.source} gives its shapes by hand, without a [model]; "
            "give --model and no study, or leave the flags of a model out"
        )

    def override(  # noqa: PLR0913 - one for every flag
        self,
        *,
        max_loras: int | None = None,
        rank: int | None = None,
        tokens: Sequence[int] | str | None = None,
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
            tokens: Batch sizes, or ``AUTO``.
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
            {"tokens": token_counts}, tokens=list(tokens) if _is_list(tokens) else tokens
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
            ops=self.ops if ops is None else frozenset(ops),
            time_budget_s=self.time_budget_s if time_budget_s is None else time_budget_s,
            **counts,
            **(plain | _effort_of(plain)),
        )

    def _tables_of(self, ops: Collection[LoraOp] | None) -> Mapping[int, Mapping[str, Any]]:
        """The ``[[shapes]]`` tables of these ops."""
        if ops is None or self.model is not None:
            return self.shape_tables
        kept = {n: table for n, table in self.shape_tables.items() if table.get("op") in tuple(ops)}
        if not kept:
            there = sorted({str(table.get("op")) for table in self.shape_tables.values()})
            raise StudyFileError(_no_op(ops, self.source, there))
        return kept

    def _gap(self) -> str | None:
        """The first value that a shape needs and nothing gives."""
        if self.model is not None and "max_loras" not in self.lora:
            return "the model needs max_loras: add it to [lora] or give --max-loras"
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

    def _read_workload(self) -> Workload:
        gap = self._gap()
        if gap is not None:
            raise StudyFileError(f"{self.source}: {gap}")
        batches = self.batches
        server = Server(
            lora=self.lora,
            tokens=batches.grid if isinstance(self.tokens, str) else self.tokens,
            max_num_seqs=batches.max_num_seqs,
        )
        try:
            kernels = self._kernels()
            found = Workload.of(
                kernels,
                server,
                recorded=self.recorded if self.is_auto else None,
                may_share=self.model is not None,
            )
        except StudyFileError:
            raise
        except InputError as error:
            raise StudyFileError(f"{self.source}: {error}") from error
        of_model = self.model.notes(kernels) if self.model is not None else ()
        return replace(found, notes=(*of_model, *found.notes))

    def _kernels(self) -> list[Kernel]:
        """Those of the model, or of the file."""
        if self.model is None:
            return [
                Kernel(place=f"[[shapes]] no. {number}", table=table)
                for number, table in self.shape_tables.items()
            ]
        kernels = self.model.kernels(self.lora.get("rank"))
        kept = [
            each for each in kernels if self.ops is None or LoraOp(each.table["op"]) in self.ops
        ]
        if not kept:
            there = dict.fromkeys(each.table["op"] for each in kernels)
            raise StudyFileError(_no_op(self.ops or (), f"the model {self.model.config}", there))
        return kept


def _is_list(tokens: Sequence[int] | str | None) -> TypeGuard[Sequence[int]]:
    return tokens is not None and not isinstance(tokens, str)


def _model(place: str, table: object, folder: Path) -> ModelTable:
    try:
        return ModelTable.of_file(read_table(place, table, MODEL_TABLE), folder)
    except StudyFileError:
        raise
    except InputError as error:
        raise StudyFileError(f"{place}: {error}") from error


def _effort_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What trials and effort a file or flags ask for by giving both, one or none of them."""
    if given.get("effort") is not None:
        return {"trials": EFFORTS[given["effort"]].trials} if "trials" not in given else {}
    return {"effort": None} if "trials" in given else {}


def _no_op(ops: Iterable[LoraOp], where: str, there: Iterable[str]) -> str:
    names = ", ".join(sorted(op.value for op in ops))
    return f"--op: no shape of {names} in {where}; it has {', '.join(there)}"
