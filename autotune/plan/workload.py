"""From kernels to shapes: each kernel at every batch size, equal shapes once.

Knows neither study files nor models, which both give kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace

from autotune.errors import InputError
from autotune.launch.op import LookupKey, key_text
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import assigns_naively, sizes_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that is launched at one or more batch sizes.

    Attributes:
        place: Where it comes from, as messages say it: ``[[shapes]] no. 2``, or a layer's name.
        shape: Its shape at one batch size.
        layer: The name of its layer; empty where it has none.
        runs: How often a forward pass launches it; 0 where no model says so.
        is_sampled: Whether it runs over the tokens that are sampled from, one a sequence.
        has_own_batch: Whether ``num_tokens`` of its shape is its only batch size; else it is
            launched at those of the study.
        gathered_from: How many servers' batches it gets at once, each as large.
    """

    place: str
    shape: KernelShape
    layer: str = ""
    runs: int = 0
    is_sampled: bool = False
    has_own_batch: bool = False
    gathered_from: int = 1

    def shapes(self, tokens: Sequence[int], most_sampled: int) -> list[KernelShape]:
        """Its shape at each of its batch sizes.

        Args:
            tokens: The batch sizes of the study.
            most_sampled: The most tokens that a kernel over sampled tokens gets.
        """
        counts = [self.shape.num_tokens] if self.has_own_batch else tokens
        if self.is_sampled:
            counts = [min(count, most_sampled) for count in counts]
        sizes = dict.fromkeys(count * self.gathered_from for count in counts)
        return [replace(self.shape, num_tokens=size) for size in sizes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A shape, and what launches it.

    Attributes:
        shape: The shape.
        names: The names of its layers.
        runs: How often a forward pass launches it; 0 where no model says so.
    """

    shape: KernelShape
    names: tuple[str, ...]
    runs: int

    @property
    def written(self) -> int:
        """How many numbers a forward pass writes with this shape for each token."""
        shape = self.shape
        return self.runs * (sum(shape.slice_sizes) or shape.num_slices * shape.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Every shape of a study.

    Attributes:
        launched: Each shape once, in the order of the kernels, tokens innermost.
        sampled: The shapes, ``without_batch``, that run over sampled tokens only.
        also_sampled: The shapes, ``without_batch``, that run over sampled tokens, too.
        notes: What a user must know of the shapes, in a line each.
    """

    launched: tuple[Launched, ...]
    sampled: frozenset[KernelShape]
    also_sampled: frozenset[KernelShape] = frozenset()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        kernels: Iterable[Kernel],
        tokens: Sequence[int],
        *,
        most_sampled: int,
        recorded: Collection[KernelShape] | None = None,
        may_share: bool = False,
    ) -> Workload:
        """Every kernel at every batch size.

        Args:
            kernels: In the order in which they are to be listed.
            tokens: Batch sizes, for the kernels that have none of their own.
            most_sampled: The most tokens that a kernel over sampled tokens gets.
            recorded: Nothing but these shapes is kept; None for all.
            may_share: Whether kernels that vLLM cannot tell apart get one entry, as those of a
                model must; otherwise they are an error.

        Raises:
            InputError: vLLM cannot tell two kernels apart, or no shape is recorded.
        """
        placed = [
            (kernel, shape) for kernel in kernels for shape in kernel.shapes(tokens, most_sampled)
        ]
        if not may_share:
            _check_entries(placed)
        found = _once_each(placed)
        held = found if recorded is None else _held(found, recorded)
        launched, notes = one_an_entry(held)
        notes += shared_by_launches([each.shape for each in launched])
        if len(held) < len(found):
            notes.append(
                f"The recording holds {len(held)} of the {len(found)} shapes: the others are left "
                "out."
            )
        over_all = {shape.without_batch for kernel, shape in placed if not kernel.is_sampled}
        sampled = {shape.without_batch for kernel, shape in placed if kernel.is_sampled}
        return cls(
            launched=tuple(launched),
            sampled=frozenset(sampled - over_all),
            also_sampled=frozenset(sampled & over_all),
            notes=tuple(notes),
        )


_Placed = tuple[Kernel, KernelShape]
_Entry = tuple[str, LookupKey]


def _once_each(placed: Iterable[_Placed]) -> list[Launched]:
    by_shape: dict[KernelShape, list[Kernel]] = {}
    for kernel, shape in placed:
        by_shape.setdefault(shape, []).append(kernel)
    return [
        Launched(
            shape=shape,
            names=tuple(dict.fromkeys(each.layer for each in alike if each.layer)),
            runs=sum(each.runs for each in alike),
        )
        for shape, alike in by_shape.items()
    ]


def _held(found: Iterable[Launched], recorded: Collection[KernelShape]) -> list[Launched]:
    """The shapes that a recording holds; raises ``InputError`` where it holds none."""
    held = [each for each in found if each.shape in recorded]
    if not held:
        raise InputError(
            "the recording has none of the shapes at the batch sizes of --tokens auto; "
            "name those that it has with --tokens"
        )
    return held


# --------------------------------------------------------------------------- one key, one entry


def _entry(shape: KernelShape) -> _Entry:
    """The file and the key by which vLLM looks a shape up, under any GPU's name."""
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
    """Keep one of the shapes that vLLM cannot tell apart.

    vLLM looks ``expand`` up by its largest slice: layers whose other slices differ get one entry.
    The shape that writes most in a forward pass is kept.

    Returns:
        The shapes that are kept, and a line on every pair of layers that share an entry.
    """
    by_entry: dict[_Entry, list[Launched]] = {}
    for each in launched:
        by_entry.setdefault(_entry(each.shape), []).append(each)
    kept: list[Launched] = []
    lines: dict[str, None] = {}  # a line is the same for every batch size, and is kept once
    for rivals in by_entry.values():
        first, *others = sorted(rivals, key=lambda each: -each.written)
        kept.append(first)
        lines |= {_shared(first, other): None for other in others}
    return kept, list(lines)


def shared_by_launches(shapes: Iterable[KernelShape]) -> list[str]:
    """A warning where one entry serves launches for several numbers of adapters in use."""
    listed = list(shapes)
    several = [each for each in listed if len(each.launches) > 1 and not assigns_naively(each)]
    if not several:
        return []
    most = max(several, key=lambda each: len(each.launches))
    slots = sorted({each.lora_slots for each in several})
    line = (
        f"warning: with --specialize-active-lora {len(several)} of {len(listed)} entries serve "
        f"launches for several numbers of active LoRAs ({', '.join(map(str, most.launches))}), "
        f"which vLLM looks up under one key: they are tuned for {' and '.join(map(str, slots))}; "
        "--active-loras chooses another number"
    )
    return [line]


def _shared(first: Launched, other: Launched) -> str:
    return (
        f"vLLM has one entry for {first.shape.op.value} of {_who(first)} and of "
        f"{_who(other)}, which differ: {_differences(first.shape, other.shape)}. It is "
        "tuned for the former, which writes more."
    )


def _who(launched: Launched) -> str:
    """The names of a shape's layers, or its sizes where they have none."""
    return ", ".join(launched.names) or sizes_text(launched.shape)


def _differences(one: KernelShape, other: KernelShape) -> str:
    return ", ".join(
        f"{field.name} {getattr(one, field.name)} and {getattr(other, field.name)}"
        for field in fields(KernelShape)
        if getattr(one, field.name) != getattr(other, field.name)
    )
