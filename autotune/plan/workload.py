"""From kernels without a batch to shapes: each at every batch size, once, with what launches it.

Knows neither files nor models: a kernel is a ``[[shapes]]`` table, wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from autotune.errors import InputError, ShapeError
from autotune.launch.op import LookupKey, key_text
from autotune.launch.shape import KernelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that is launched.

    Attributes:
        place: Where it comes from, as messages say it: ``[[shapes]] no. 2``, or a layer's name.
        table: A ``[[shapes]]`` table; what it lacks is the same for all kernels of the study.
        runs: How often a forward pass launches it; 0 where nothing says.
        is_sampled: Whether it runs over the tokens that are sampled from, one a sequence.
    """

    place: str
    table: Mapping[str, Any]
    runs: int = 0
    is_sampled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A shape, and what launches it.

    Attributes:
        shape: The shape.
        names: Of its layers, those that have one.
        runs: How often a forward pass launches it; 0 where nothing says.
    """

    shape: KernelShape
    names: tuple[str, ...]
    runs: int

    @property
    def written(self) -> int:
        """Numbers that a forward pass writes by it for each token."""
        shape = self.shape
        return self.runs * (sum(shape.slice_sizes) or shape.num_slices * shape.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a study says of all its kernels.

    Attributes:
        lora: What tables take that do not say otherwise.
        tokens: Batch sizes, for the tables that name none.
        max_num_seqs: What runs over sampled tokens has at most so many.
    """

    lora: Mapping[str, Any]
    tokens: Sequence[int]
    max_num_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Every shape of a study.

    Attributes:
        launched: Each shape once, in the order of the kernels, tokens innermost.
        sampled: The kinds of shapes, ``without_batch``, that only run over sampled tokens.
        notes: What is to be known of the shapes, a line each.
    """

    launched: tuple[Launched, ...]
    sampled: frozenset[KernelShape]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        kernels: Iterable[Kernel],
        server: Server,
        *,
        recorded: Collection[KernelShape] | None = None,
        may_share: bool = False,
    ) -> Workload:
        """Every kernel at every batch size.

        Args:
            kernels: In the order in which they are to be listed.
            server: What is the same for all of them.
            recorded: Nothing but these shapes is kept; None for all.
            may_share: Whether kernels that vLLM cannot tell apart get one entry, as those of a
                model must; else they are an error.

        Raises:
            InputError: A shape cannot be, lacks a value, shares an entry, or none is recorded.
        """
        placed = [(kernel, shape) for kernel in kernels for shape in _shapes(kernel, server)]
        if not may_share:
            _check_entries(placed)
        found = _once_each(placed)
        held = found if recorded is None else _held(found, recorded)
        launched, notes = one_an_entry(held)
        if len(held) < len(found):
            notes.append(
                f"The recording holds {len(held)} of the {len(found)} shapes: the others are left "
                "out."
            )
        over_all = {shape.without_batch for kernel, shape in placed if not kernel.is_sampled}
        sampled = {shape.without_batch for kernel, shape in placed if kernel.is_sampled}
        return cls(
            launched=tuple(launched), sampled=frozenset(sampled - over_all), notes=tuple(notes)
        )


_Placed = tuple[Kernel, KernelShape]
_Entry = tuple[str, LookupKey]


def _shapes(kernel: Kernel, server: Server) -> Iterator[KernelShape]:
    """A kernel at its batch sizes: all of them, but for what runs once a sequence."""
    values = {**server.lora, **kernel.table}
    values.pop("layer", None)
    counts = [values["num_tokens"]] if "num_tokens" in values else server.tokens
    if kernel.is_sampled:
        counts = [min(count, server.max_num_seqs) for count in counts]
    for count in dict.fromkeys(counts):
        try:
            yield KernelShape.from_mapping({**values, "num_tokens": count})
        except ShapeError as error:
            raise InputError(f"{kernel.place}: {error}") from error


def _once_each(placed: Iterable[_Placed]) -> list[Launched]:
    by_shape: dict[KernelShape, list[Kernel]] = {}
    for kernel, shape in placed:
        by_shape.setdefault(shape, []).append(kernel)
    return [
        Launched(
            shape=shape,
            names=tuple(
                dict.fromkeys(each.table["layer"] for each in those if "layer" in each.table)
            ),
            runs=sum(each.runs for each in those),
        )
        for shape, those in by_shape.items()
    ]


def _held(found: Iterable[Launched], recorded: Collection[KernelShape]) -> list[Launched]:
    """Those that a recording holds."""
    held = [each for each in found if each.shape in recorded]
    if not held:
        raise InputError(
            "the recording has none of the shapes at the batch sizes of --tokens auto; "
            "name those that it has with --tokens"
        )
    return held


# --------------------------------------------------------------------------- one key, one entry


def _entry(shape: KernelShape) -> _Entry:
    """What vLLM tells a shape by; the name of the GPU does not matter."""
    return shape.file_name("gpu"), shape.lookup_key


def _check_entries(placed: Iterable[_Placed]) -> None:
    """Raise ``InputError`` where vLLM cannot tell two different shapes apart."""
    first: dict[_Entry, _Placed] = {}
    for kernel, shape in placed:
        other, same = first.setdefault(_entry(shape), (kernel, shape))
        if same != shape:
            key = key_text(shape.lookup_key)
            raise InputError(
                f"{kernel.place}: vLLM looks it up as {shape.op.value} {key}, like "
                f"{other.place}, and the two differ: {_differences(same, shape)}; tune them in "
                "two studies with two outputs"
            )


def one_an_entry(launched: Iterable[Launched]) -> tuple[list[Launched], list[str]]:
    """Of shapes that vLLM cannot tell apart the one that matters most, and a line on the others.

    vLLM looks ``expand`` up by its largest slice: layers whose other slices differ get one entry.
    It is tuned for the one that writes most in a forward pass.
    """
    by_entry: dict[_Entry, list[Launched]] = {}
    for each in launched:
        by_entry.setdefault(_entry(each.shape), []).append(each)
    kept: list[Launched] = []
    lines: dict[str, None] = {}  # the same for every batch size, and said once
    for rivals in by_entry.values():
        first, *others = sorted(rivals, key=lambda each: -each.written)
        kept.append(first)
        lines |= {_shared(first, other): None for other in others}
    return kept, list(lines)


def _shared(first: Launched, other: Launched) -> str:
    return (
        f"vLLM has one entry for {first.shape.op.value} of {', '.join(first.names)} and of "
        f"{', '.join(other.names)}, which differ: {_differences(first.shape, other.shape)}. It is "
        "tuned for the former, which writes more."
    )


def _differences(one: KernelShape, other: KernelShape) -> str:
    return ", ".join(
        f"{field.name} {getattr(one, field.name)} and {getattr(other, field.name)}"
        for field in fields(KernelShape)
        if getattr(one, field.name) != getattr(other, field.name)
    )
