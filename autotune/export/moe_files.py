"""Choosing each MoE layer's ``block_m`` so that it agrees with the rest of the folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.choose.couple import DEFAULT_ONLY, couple_layer
from autotune.choose.selection import Selection
from autotune.errors import ExportError, InputError
from autotune.export.check.agreement import coupling_findings, taken_for_others
from autotune.export.check.entries import Entry, TunedFile, read_content, walk
from autotune.export.check.findings import Finding
from autotune.export.nested import leaf_at, put_leaf
from autotune.export.provenance import Entries
from autotune.launch.moe_layer import MoeLayer, by_layer, missing_ops, names_of
from autotune.launch.op import MOE_DEFAULTS, MOE_OPS, LoraOp, gpu_file_prefix, key_text
from autotune.launch.shape import KernelShape


def couple_in(
    folder: Path,
    gpu: str,
    selections: Sequence[Selection],
    *,
    tables: Mapping[str, dict[str, Any]],
    entries: Entries,
) -> list[Selection]:
    """Choose every MoE layer's ``block_m``, so that the folder as a whole agrees.

    If all four ops of a layer are exported, it gets the ``block_m`` that is best for the layer. If
    some are missing, it gets the one that vLLM takes for those: an entry of the folder, else vLLM's
    default.

    Args:
        folder: The folder.
        gpu: The GPU whose files they are.
        selections: What is exported, dense ops included.
        tables: The present content of every file that is written; not changed here.
        entries: The provenance's entries.

    Returns:
        The selections in the same order, those of MoE ops with the ``block_m`` of their layer.

    Raises:
        ExportError: No ``block_m`` fits a layer, or the folder would not agree in other places.
    """
    layers = by_layer(selections, lambda one: one.shape)
    if not layers:
        return list(selections)
    files = _MoeFiles(folder, gpu, tables, entries)
    chosen: dict[KernelShape, Selection] = {}
    # Whole layers first: they depend on no other layer, but others may depend on their entries.
    for layer, those in sorted(layers.items(), key=lambda item: _missing(item[1]) != ()):
        coupled = couple_layer(those, allowed=files.taken_for_missing(layer, those))
        files.put(coupled)
        chosen |= {one.shape: one for one in coupled}
    files.check()
    return [chosen.get(one.shape, one) for one in selections]


def _missing(selections: Sequence[Selection]) -> tuple[LoraOp, ...]:
    return missing_ops(one.shape for one in selections)


class _MoeFiles:
    """The MoE files of one GPU as they will be."""

    def __init__(
        self, folder: Path, gpu: str, tables: Mapping[str, dict[str, Any]], entries: Entries
    ) -> None:
        self._prefix = gpu_file_prefix(gpu)
        self._tables: dict[LoraOp, Any] = {}
        for op in MOE_OPS:
            name = self._name(op)
            content = copy.deepcopy(tables[name]) if name in tables else read_content(folder, name)
            if not isinstance(content, Finding):  # else it is not there, or the check reports it
                self._tables[op] = content
        self._written = list(_written(entries, {self._name(op): op for op in MOE_OPS}))

    def taken_for_missing(
        self, layer: MoeLayer, selections: Sequence[Selection]
    ) -> Mapping[int, str] | None:
        """The ``block_m`` that vLLM takes for the ops that a layer lacks, and where it is from.

        None where the layer lacks no op.

        Raises:
            ExportError: vLLM would take more than one.
        """
        missing = set(_missing(selections))
        if not missing:
            return None
        found = {
            (block_m, f"{self._name(op)} at {key_text(shape.lookup_key)}")
            for op, shape, block_m in self._of_layer(layer)
            if op in missing and isinstance(block_m, int)
        }
        found |= {
            (block_m, f"{self._name(op)}{place}")
            for one in selections
            for op, block_m, place in taken_for_others(
                self._parsed(), one.shape.op, one.shape.lookup_key, missing
            )
            if isinstance(block_m, int)
        }
        places_of = dict(sorted(found, reverse=True))
        if len(places_of) > 1:
            places = "; ".join(f"{block_m} of {place}" for block_m, place in sorted(found))
            raise ExportError(
                f"the MoE layer {layer.label} lacks {names_of(_missing(selections))}, for which "
                f"vLLM would take more than one block_m: got {places}; tune all four ops together"
            )
        return places_of or DEFAULT_ONLY

    def put(self, selections: Sequence[Selection]) -> None:
        """Enter selections in the tables."""
        for one in selections:
            put_leaf(self._tables[one.shape.op], one.shape.lookup_key, one.config.as_dict())

    def check(self) -> None:
        """Make sure that no launch meets two ``block_m``.

        Raises:
            ExportError: A launch would meet two.
        """
        for finding in coupling_findings(self._prefix, self._parsed()):
            raise ExportError(
                f"nothing was written, since the MoE files would not agree: {finding.place}: "
                f"{finding.message}, by tuning that layer's four ops, or give another --output"
            )

    def _of_layer(self, layer: MoeLayer) -> Iterator[tuple[LoraOp, KernelShape, object]]:
        """The entries that autotune wrote for a layer and that are still there.

        Yields:
            The op, the shape, and the entry's ``block_m``.
        """
        for op, shape in self._written:
            leaf = leaf_at(self._tables.get(op), shape.lookup_key)
            if MoeLayer.of(shape) == layer and isinstance(leaf, dict):
                yield op, shape, op.values_in(leaf).get("block_m", MOE_DEFAULTS["block_m"])

    def _parsed(self) -> dict[LoraOp, tuple[TunedFile, list[Entry]]]:
        parsed = {}
        for op, content in self._tables.items():
            file = TunedFile(self._name(op), self._prefix, op, content)
            parsed[op] = (file, [each for each in walk(file) if isinstance(each, Entry)])
        return parsed

    def _name(self, op: LoraOp) -> str:
        return f"{self._prefix}{op.file_suffixes[0]}"


def _written(entries: Entries, ops: Mapping[str, LoraOp]) -> Iterator[tuple[LoraOp, KernelShape]]:
    """The shapes of the provenance's entries in these files."""
    for name, op in ops.items():
        for entry in entries.get(name, {}).values():
            try:
                shape = KernelShape.from_mapping(entry.get("shape", {}))
            except (InputError, AttributeError, TypeError):
                continue  # of another version, or edited by hand
            if shape.op is op:
                yield op, shape
