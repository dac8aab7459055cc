"""Choosing each MoE layer's ``block_m`` so that it agrees with the rest of the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from autotune.choose.couple import DEFAULT_ONLY, couple_layer
from autotune.choose.selection import Selection
from autotune.errors import ExportError, InputError
from autotune.export.check.agreement import MoeFile, coupling_findings, taken_for_others
from autotune.export.check.entries import Entry, TunedFile, read_content, walk
from autotune.export.check.findings import Finding
from autotune.export.nested import copied, leaf_at, put_leaf
from autotune.export.provenance import Entries
from autotune.launch.config import is_value
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
        self._files: dict[LoraOp, MoeFile] = {}
        for op in MOE_OPS:
            name = self._name(op)
            content = (
                copied(tables[name], len(op.levels))
                if name in tables
                else read_content(folder, name)
            )
            if not isinstance(content, Finding):  # else it is not there, or the check reports it
                self._files[op] = self._walked(op, content)
        self._entries = entries

    @cached_property
    def _written(self) -> dict[MoeLayer, list[tuple[LoraOp, KernelShape]]]:
        written: dict[MoeLayer, list[tuple[LoraOp, KernelShape]]] = {}
        for op, shape in _written(self._entries, {self._name(op): op for op in MOE_OPS}):
            written.setdefault(MoeLayer.of(shape), []).append((op, shape))
        return written

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
            if op in missing and is_value(block_m)
        }
        found |= {
            (block_m, f"{self._name(op)}{place}")
            for one in selections
            for op, block_m, place in taken_for_others(
                self._files, one.shape.op, one.shape.lookup_key, missing
            )
            if is_value(block_m)
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
            key = one.shape.lookup_key
            put_leaf(self._files[one.shape.op].content, key, one.config.as_dict())
            self._files[one.shape.op].slices.add(key.num_slices)

    def check(self) -> None:
        """Make sure that no launch meets two ``block_m``.

        Raises:
            ExportError: A launch would meet two.
        """
        files = {op: self._walked(op, file.content) for op, file in self._files.items()}
        for finding in coupling_findings(self._prefix, files):
            raise ExportError(
                f"nothing was written, since the MoE files would not agree: {finding.place}: "
                f"{finding.message}, by tuning that layer's four ops, or give another --output"
            )

    def _of_layer(self, layer: MoeLayer) -> Iterator[tuple[LoraOp, KernelShape, object]]:
        """The entries that autotune wrote for a layer and that are still there.

        Yields:
            The op, the shape, and the entry's ``block_m``.
        """
        for op, shape in self._written.get(layer, ()):
            file = self._files.get(op)
            leaf = leaf_at(file and file.content, shape.lookup_key)
            if isinstance(leaf, dict):
                yield op, shape, op.values_in(leaf).get("block_m", MOE_DEFAULTS["block_m"])

    def _walked(self, op: LoraOp, content: object) -> MoeFile:
        file = TunedFile(self._name(op), self._prefix, op, content)
        return MoeFile.of(file, (each for each in walk(file) if isinstance(each, Entry)))

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
