"""How much of a server's look-ups a folder of the collection answers, and how well."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from autotune.export.check import LookedUp, check
from autotune.export.collection import Collected, Tuned
from autotune.export.tuned_entry import TunedEntry
from autotune.launch.op import MOE_OPS, LoraOp, key_text
from autotune.launch.shape import KernelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What vLLM finds for a deployment in a folder of the collection.

    Attributes:
        of: The folder's entries.
        exact: Look-ups that end at the key asked for, at an entry that was tuned for this shape.
        other_layer: Look-ups that end at the key asked for, at an entry that was tuned for another
            shape with this key: slices of other sizes, say, or fewer adapters at once.
        near: Look-ups that end at another batch size of the same sizes.
        far: Look-ups that end at an entry of other sizes, another rank or another max_loras. What
            was fast there may be slower than the default here.
        missing: Look-ups for which there is no file: vLLM takes its default.
        stopping: Look-ups at which vLLM would stop with an error: the folder must not be used.
    """

    of: Collected
    exact: tuple[LookedUp, ...]
    other_layer: tuple[LookedUp, ...]
    near: tuple[LookedUp, ...]
    far: tuple[LookedUp, ...]
    missing: tuple[LookedUp, ...]
    stopping: tuple[LookedUp, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many look-ups end in which way."""
        return {kind: len(getattr(self, kind)) for kind in _KINDS}

    @property
    def is_whole(self) -> bool:
        """Whether every look-up ends at the key asked for."""
        return not (self.near or self.far or self.missing or self.stopping)

    @property
    def left_out(self) -> frozenset[LoraOp]:
        """The ops whose entries are no use here, since a look-up of theirs would stop vLLM.

        The ops of a mixture's layer go together.
        """
        ops = {each.shape.op for each in self.stopping}
        return frozenset(ops | (set(MOE_OPS) if ops & set(MOE_OPS) else set()))

    @property
    def taken(self) -> Tuned:
        """The entries that are found; look-ups in them alone end as in the whole folder."""
        taken: Tuned = {}
        for each in (*self.exact, *self.other_layer, *self.near, *self.far):
            if each.shape.op in self.left_out:
                continue
            entry = _entry_of(self.of, each)
            taken.setdefault(each.file, {})[key_text(each.path or ())] = entry
        return taken

    def as_dict(self) -> dict[str, Any]:
        """The coverage as JSON-ready values."""
        lookups = {kind: [each.as_dict() for each in getattr(self, kind)] for kind in _KINDS}
        return {"gpu": self.of.gpu, "folder": str(self.of.folder), **self.counts} | {
            "lookups": lookups
        }


_KINDS = ("exact", "other_layer", "near", "far", "missing", "stopping")


def covered(of: Collected, shapes: Collection[KernelShape]) -> Coverage:
    """Look every shape up in a folder of the collection, as vLLM would.

    Args:
        of: The folder.
        shapes: What a server looks up.

    Raises:
        InputError: The folder is broken.
    """
    found: dict[str, list[LookedUp]] = {kind: [] for kind in _KINDS}
    for each in check(of.folder, {of.gpu: tuple(shapes)}).lookups:
        found[_kind(of, each)].append(each)
    return Coverage(of=of, **{kind: tuple(those) for kind, those in found.items()})


def _kind(of: Collected, each: LookedUp) -> str:
    if each.path is None:
        return "stopping" if each.outcome == "stops" else "missing"
    asked = each.shape.lookup_key
    if each.path == asked:
        return "exact" if _entry_of(of, each).shape == each.shape else "other_layer"
    return "near" if asked._replace(m=each.path.m) == each.path else "far"


def _entry_of(of: Collected, each: LookedUp) -> TunedEntry:
    return of.tuned[each.file][key_text(each.path or ())]


# ------------------------------------------------------------------ what there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What the collection holds for one model, as one server runs it on one GPU.

    Attributes:
        gpu: The GPU.
        model: The model; empty where that is not known.
        tensor_parallel: The server's ``--tensor-parallel-size``; 0 where the model is not known.
        rank: The adapters' rank, as the shapes have it.
        max_loras: The server's ``--max-loras``.
        kernels: Whose kernels, such as ``vllm-0.33.0``.
        measured_at: The last day on which an entry was measured; empty where that is not known.
        shapes: How many shapes were tuned.
        batch_sizes: How many batch sizes they have.
        median: The median of the ratios to vLLM's defaults; None where no default runs.
        least: The least of them.
    """

    gpu: str
    model: str
    tensor_parallel: int
    rank: int
    max_loras: int
    kernels: str
    measured_at: str
    shapes: int
    batch_sizes: int
    median: float | None
    least: float | None

    def as_dict(self) -> dict[str, Any]:
        """The holding as JSON-ready values."""
        return {name: getattr(self, name) for name in self.__slots__}


def holdings(every: Iterable[Collected]) -> list[Holding]:
    """What folders of the collection hold, a model at a time."""
    groups: dict[tuple[Any, ...], list[TunedEntry]] = {}
    for each in every:
        for entry in each.entries:
            for model, size, _ in entry.tuned_for or (("", 0, ""),):
                shape, kernels = entry.shape, entry.environment.kernels
                of = (each.gpu, model, size, shape.rank * shape.shards, shape.max_loras, kernels)
                groups.setdefault(of, []).append(entry)
    return [_holding(of, entries) for of, entries in sorted(groups.items())]


def _holding(of: tuple[Any, ...], entries: list[TunedEntry]) -> Holding:
    gpu, model, size, rank, max_loras, kernels = of
    ratios = sorted(entry.served.value for entry in entries if entry.served is not None)
    return Holding(
        gpu=gpu,
        model=model,
        tensor_parallel=size,
        rank=rank,
        max_loras=max_loras,
        kernels=kernels,
        measured_at=max(entry.measured_at for entry in entries),
        shapes=len(entries),
        batch_sizes=len({entry.shape.num_tokens for entry in entries}),
        median=statistics.median(ratios) if ratios else None,
        least=ratios[0] if ratios else None,
    )
