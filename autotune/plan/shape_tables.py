"""From a study file's ``[[shapes]]`` tables to the kernels that they describe."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from autotune.errors import InputError, ShapeError, StudyFileError
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.lacking import lacking_text
from autotune.plan.workload import Kernel

#: The tables, each with its number in the file, from 1.
ShapeTables = Mapping[int, Mapping[str, Any]]


def missing_value(tables: ShapeTables, lora: Mapping[str, Any], *, has_tokens: bool) -> str | None:
    """What the first table that lacks values lacks, as a message says it; None if none does.

    Args:
        tables: The tables.
        lora: The values of ``[lora]``, for the tables that do not give them.
        has_tokens: Whether the study gives batch sizes for the tables that name none.
    """
    for number, table in tables.items():
        given = {*table, *lora, *(["num_tokens"] if has_tokens else [])}
        lacking = [name for name in ("max_loras", "rank", "num_tokens") if name not in given]
        if lacking:
            return lacking_text(f"[[shapes]] no. {number}", lacking)
    return None


def kernels_of(tables: ShapeTables, lora: Mapping[str, Any]) -> list[Kernel]:
    """The kernel of each table.

    Args:
        tables: The tables, with no value missing.
        lora: The values of ``[lora]``, for the tables that do not give them.

    Raises:
        InputError: A table describes a shape that vLLM would never ask for.
    """
    return [_kernel(f"[[shapes]] no. {number}", lora, table) for number, table in tables.items()]


def _kernel(place: str, lora: Mapping[str, Any], table: Mapping[str, Any]) -> Kernel:
    values = {"num_tokens": 1, **lora, **table}
    layer = values.pop("layer", "")
    try:
        shape = KernelShape.from_mapping(values)
    except ShapeError as error:
        raise InputError(f"{place}: {error}") from error
    return Kernel(place=place, shape=shape, layer=layer, has_own_batch="num_tokens" in table)


def of_ops(tables: ShapeTables, ops: Collection[LoraOp], source: str) -> ShapeTables:
    """The tables of some ops.

    Args:
        tables: The tables.
        ops: The ops to keep.
        source: The study file, as messages name it.

    Raises:
        StudyFileError: No table is of these ops.
    """
    # Until a table is read its op may be a list, which cannot be looked up in a set.
    kept = {number: table for number, table in tables.items() if table.get("op") in tuple(ops)}
    if not kept:
        raise no_such_op(ops, source, sorted({str(table.get("op")) for table in tables.values()}))
    return kept


def no_such_op(ops: Iterable[LoraOp], where: str, there: Iterable[str]) -> StudyFileError:
    """The error that the study has no shape of the ops asked for.

    Args:
        ops: The ops asked for.
        where: What has none of them, as the message names it.
        there: The names of the ops that it has.
    """
    names = ", ".join(sorted(op.value for op in ops))
    return StudyFileError(f"--op: no shape of {names} in {where}; it has {', '.join(there)}")


def without_values(tables: ShapeTables, names: Collection[str]) -> ShapeTables:
    """The tables without the values of these names."""
    return {
        number: {name: value for name, value in table.items() if name not in names}
        for number, table in tables.items()
    }
