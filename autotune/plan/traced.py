"""Reading a trace: which kernels a server looked up, and at which batch sizes.

The plugin in ``autotune/trace`` writes it. A line gives what vLLM's look-up was asked and the sizes
of the caller's tensors; a later line of the same process and number gives newer figures.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from autotune.errors import InputError, ShapeError, printable, shown
from autotune.launch.op import key_text
from autotune.launch.shape import KernelShape
from autotune.plan.batches import doubled, thinned
from autotune.plan.documents import read_lines
from autotune.plan.trace_lines import Figures, Header, LookUp, When
from autotune.plan.workload import Kernel
from autotune.trace import SCHEMA
from autotune.untrusted import read_json

__all__ = ["Asked", "Trace", "When", "first_of", "read_trace"]

#: Which of the reasons why look-ups are left out are told.
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A shape that vLLM looked up.

    Attributes:
        shape: The shape.
        count: How often it was looked up, by all processes together.
        layers: How many layers launch its kernel in a forward pass of one GPU.
        when: When it was looked up first; ``capture`` before ``start`` before ``serving``.
    """

    shape: KernelShape
    count: int
    layers: int
    when: When

    def joined(self, other: Asked) -> Asked:
        """The same shape as two processes saw it."""
        layers = max(self.layers, other.layers)
        when = first_of((self.when, other.when))
        return replace(self, count=self.count + other.count, layers=layers, when=when)


def first_of(whens: Iterable[When]) -> When:
    """The first of several times: ``capture``, else ``start``, else ``serving``."""
    return min(whens, key=get_args(When).index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a server looked up.

    Attributes:
        source: The file, as messages name it.
        release: vLLM's version; empty if that is not known.
        gpu: The GPU's name; empty if that is not known.
        asked: Every shape once, in the order in which they were looked up.
        notes: What a user must know of it, in a line each.
    """

    source: str
    release: str
    gpu: str
    asked: tuple[Asked, ...]
    notes: tuple[str, ...] = ()
    _by_kind: Mapping[KernelShape, Sequence[Asked]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_kind: dict[KernelShape, list[Asked]] = {}
        for each in self.asked:
            by_kind.setdefault(each.shape.without_batch, []).append(each)
        object.__setattr__(self, "_by_kind", by_kind)

    @property
    def kinds(self) -> tuple[KernelShape, ...]:
        """Every kernel once, ``without_batch``."""
        return tuple(self._by_kind)

    @property
    def count(self) -> int:
        """How many look-ups there were."""
        return sum(each.count for each in self.asked)

    def sizes(self, *when: When, kind: KernelShape | None = None) -> list[int]:
        """The batch sizes that were looked up, ascending.

        Args:
            when: Those of these times only; all if none is given.
            kind: Those of this kernel only.
        """
        those = self.asked if kind is None else self._by_kind.get(kind, ())
        return sorted({each.shape.num_tokens for each in those if not when or each.when in when})

    @property
    def limits(self) -> dict[str, int]:
        """The largest batches: of any kernel, and of those that only sampled tokens go through."""
        sampled = [max(self.sizes(kind=kind)) for kind in self.kinds if self.is_sampled(kind)]
        most = max(self.sizes())
        return {"max_num_batched_tokens": most, "max_num_seqs": max(sampled, default=most)}

    def kernels(self, *, rows: bool) -> list[Kernel]:
        """Every kernel, with how many layers launch it.

        Args:
            rows: Whether each is launched at the batch sizes to tune it at. Else they are given.
        """
        return [
            Kernel(
                place=f"{self.source}: {kind.op.value}",
                shape=replace(kind, num_tokens=count),
                runs=max(each.layers for each in those),
                is_sampled=self.is_sampled(kind),
                has_own_batch=rows,
            )
            for kind, those in self._by_kind.items()
            for count in (self._rows(kind) if rows else [1])
        ]

    def captured(self, kind: KernelShape) -> list[KernelShape]:
        """A kernel at every batch size at which a CUDA graph was captured."""
        return [replace(kind, num_tokens=count) for count in self.sizes("capture", kind=kind)]

    def _rows(self, kind: KernelShape) -> list[int]:
        """The batch sizes to tune: those asked for, thinned, and doublings beyond the graphs."""
        sizes = self.sizes(kind=kind)
        captured = self.sizes("capture", kind=kind) or sizes[:1]
        return doubled(thinned(sizes), after=captured[-1])

    def is_sampled(self, kind: KernelShape) -> bool:
        """Whether only sampled tokens go through it: logits are no part of the graphs."""
        return bool(self.sizes("capture")) and not self.sizes("capture", kind=kind)


def read_trace(path: Path) -> Trace:
    """Read a trace.

    A last line without its end is being written, and is left out.

    Raises:
        InputError: The file cannot be read, is no trace, or holds no look-up that autotune can
            launch; the message names the line, the field and the value.
    """
    source = printable(str(path))
    lines = read_lines(path, "the trace")
    header = _header(source, next(lines, b""))
    firsts, latest = _read(source, lines)
    if not firsts:
        raise InputError(
            f"{source} holds no look-up: vLLM asked for none; serve with --enable-lora, in an "
            "environment that autotune is installed in"
        )
    asked, left_out = _asked(firsts, latest)
    if not asked:
        raise InputError(f"{source} holds no look-up that autotune can launch: {left_out[0]}")
    notes = [f"{source}: {line}" for line in (*header.notes, *_told(left_out))]
    return Trace(
        source=source,
        release=header.vllm,
        gpu=header.gpu,
        asked=tuple(asked.values()),
        notes=tuple(notes),
    )


_Name = tuple[str, int]


def _header(source: str, text: bytes) -> Header:
    if not text:
        return Header.model_validate({})
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{source} is no trace in UTF-8, but in UTF-16; save it as UTF-8")
    if SCHEMA.encode() not in text:
        raise InputError(
            f"{source} is no trace: its first line has no schema {SCHEMA!r}; give the file that "
            "autotune trace wrote"
        )
    with _named(source, 1):
        return read_json(Header, text)


def _read(
    source: str, lines: Iterator[bytes]
) -> tuple[dict[_Name, tuple[int, LookUp]], dict[_Name, Figures]]:
    """The first line of every look-up, with its number in the file, and its latest figures."""
    firsts: dict[_Name, tuple[int, LookUp]] = {}
    latest: dict[_Name, Figures] = {}
    for number, text in enumerate(lines, start=2):
        if not text.endswith(b"\n") or text.startswith(b'{"schema"'):  # of a trace put after it
            continue
        with _named(source, number):
            figures = read_json(Figures, text)
            name = figures.process, figures.number
            if name not in firsts:
                firsts[name] = number, read_json(LookUp, text)
        latest[name] = figures
    return firsts, latest


@contextmanager
def _named(source: str, number: int) -> Iterator[None]:
    """Name the file and the line in an error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source} line {number}: {error}") from None


def _asked(
    firsts: Mapping[_Name, tuple[int, LookUp]], latest: Mapping[_Name, Figures]
) -> tuple[dict[KernelShape, Asked], list[str]]:
    """Every shape once, and why look-ups are left out, a line each."""
    everywhere = {one.layer: one.global_experts for _, one in firsts.values() if one.global_experts}
    flags = set().union(*(one.server_flags for _, one in firsts.values()))
    asked: dict[KernelShape, Asked] = {}
    left_out: list[str] = []
    seen = {one.kind: one for _, one in firsts.values() if one.lora_a or one.lora_b}
    for name, (number, blind) in firsts.items():
        one = blind.with_tensors_of(seen.get(blind.kind, blind))
        try:
            shape = one.shape(everywhere.get(one.layer), flags)
        except ShapeError as error:
            left_out.append(f"line {number}, {shown(one.op)[1:-1]} {key_text(one.key)}: {error}")
            continue
        figures = latest[name]
        new = Asked(shape=shape, count=figures.count, layers=figures.layers, when=figures.when)
        asked[shape] = asked[shape].joined(new) if shape in asked else new
    return asked, left_out


def _told(left_out: Sequence[str]) -> Iterable[str]:
    """Why look-ups are left out, the first of each reason."""
    by_reason: dict[str, list[str]] = {}
    for line in left_out:
        by_reason.setdefault(line.partition(": ")[2], []).append(line)
    for those in list(by_reason.values())[:_MOST_REASONS]:
        yield f"left out, as autotune cannot launch it: {those[0]}" + (
            f"; and {len(those) - 1} more like it" if len(those) > 1 else ""
        )
