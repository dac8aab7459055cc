"""Reading a trace: which kernels a server looked up, and at which batch sizes.

The plugin in ``autotune/trace`` writes it. A line gives what vLLM's look-up was asked and the sizes
of the caller's tensors; a later line of the same process and number gives newer figures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from autotune.errors import InputError, ShapeError, printable, shown
from autotune.launch.op import DenseKey, LookupKey, LoraOp, MoeKey, key_text
from autotune.launch.shape import LARGEST_SIZE, RANKS_ON_GPU, KernelShape
from autotune.plan.batches import doubled, thinned
from autotune.plan.documents import read_lines
from autotune.plan.workload import Kernel
from autotune.trace import SCHEMA
from autotune.untrusted import Count, Untrusted, read_json

#: When a look-up was asked: before the first request, while a CUDA graph was captured then, later.
When = Literal["capture", "start", "serving"]

#: A size of a tensor, or a key.
_Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]

#: The sizes of each slice's weights: adapters, experts or 1, and a matrix.
_Weights = Annotated[
    list[Annotated[list[_Size], Field(min_length=3, max_length=4)]],
    Field(min_length=1, max_length=64),
]

#: What a GPU's name holds, such as ``Quadro RTX 6000/8000``: it becomes part of files' names.
_GPU = r"^[A-Za-z0-9 _+()/-]{0,200}$"

_CLASSIFIER = "a classifier's head, whose rank is its number of classes: vLLM takes the nearest one"

#: Which of the reasons why look-ups are left out are told.
_MOST_REASONS = 3


class _Header(Untrusted):
    """The first line."""

    format: str = Field("", alias="schema")
    vllm: Annotated[str, Field(max_length=100)] = ""
    gpu: Annotated[str, Field(pattern=_GPU)] = ""


class _Figures(Untrusted):
    """What every other line has."""

    process: Annotated[str, Field(max_length=200)]
    number: Count
    count: Annotated[int, Field(ge=0, lt=2**63)]
    layers: Annotated[int, Field(ge=1, lt=2**31)]
    when: When


class _LookUp(_Figures):
    """The first line of a look-up."""

    op: Annotated[str, Field(max_length=200)]
    max_loras: _Size
    batch: _Size
    hidden_size: _Size
    rank: _Size
    num_slices: _Size
    add_inputs: bool | None = None
    moe_intermediate_size: _Size | None = None
    lora_a: _Weights | None = None
    lora_b: _Weights | None = None
    dtype: Annotated[str, Field(max_length=200)] = "bfloat16"
    active_loras: Annotated[int, Field(ge=0, le=LARGEST_SIZE)] | None = None
    top_k: _Size | None = None
    global_experts: _Size | None = None
    fully_sharded: bool = False
    shared_loras: bool = False

    @property
    def key(self) -> LookupKey:
        """The key under which vLLM looked it up."""
        outer = (self.max_loras, self.num_slices, self.batch)
        if self.moe_intermediate_size is not None:
            return MoeKey(*outer, self.rank, self.hidden_size, self.moe_intermediate_size)
        inner = (self.hidden_size, self.rank)
        return DenseKey(*outer, *(inner if self.op == LoraOp.SHRINK.value else inner[::-1]))

    @property
    def server_flags(self) -> set[str]:
        """The flags of the server that this look-up shows."""
        flags = {"dual_stream"} if self.op == "expand" and self.add_inputs is False else set()
        fewer = 0 < (self.active_loras or 0) < self.max_loras
        return flags | {"specialize_active_lora"} if fewer else flags

    def shape(self, everywhere: int | None, flags: Collection[str] = ()) -> KernelShape:
        """What was launched.

        Args:
            everywhere: Experts on all devices, where this look-up's caller did not know.
            flags: The server's, which any of its look-ups may have shown.

        Raises:
            ShapeError: autotune cannot launch it, or would look it up under another key.
        """
        dense = self.op in {LoraOp.SHRINK.value, LoraOp.EXPAND.value}
        if (
            self.op == LoraOp.SHRINK.value
            and self.num_slices == 1
            and self.rank not in RANKS_ON_GPU
        ):
            raise ShapeError(_CLASSIFIER)
        table = self._dense() if dense else self._of_experts(everywhere)
        shape = KernelShape.from_mapping(table | dict.fromkeys(flags, True))
        if shape.lookup_key != self.key:
            raise ShapeError(f"its tensors would be looked up as {key_text(shape.lookup_key)}")
        return shape

    @property
    def _launch(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "num_tokens": self.batch,
            "rank": self.rank,
            "hidden_size": self.hidden_size,
            "num_slices": self.num_slices,
            "max_loras": self.max_loras,
            "dtype": self.dtype,
        }

    def _dense(self) -> dict[str, Any]:
        # The key has a slot for tokens without LoRA. Where grids differ, the largest is tuned.
        table = {**self._launch, "max_loras": self.max_loras - 1}
        if self.op == LoraOp.EXPAND.value:
            table["add_inputs"] = self.add_inputs is not False
            table |= {"slice_sizes": [sizes[-2] for sizes in self.lora_b]} if self.lora_b else {}
        return table

    def _of_experts(self, everywhere: int | None) -> dict[str, Any]:
        if self.lora_a is None or self.lora_b is None or self.top_k is None:
            raise ShapeError("its tensors could not be seen")
        a, b, is_w13 = self.lora_a[0], self.lora_b[0], "_w13_" in self.op
        hidden, inner = (a[-1], b[-2]) if is_w13 else (b[-2], a[-1])
        shards = 1
        if self.fully_sharded:
            shards = max(1, b[-1] // a[-2] if is_w13 else self.hidden_size // b[-2])
        experts = max(a[1], b[1])
        return {
            **self._launch,
            "hidden_size": hidden if is_w13 else hidden * shards,
            "intermediate_size": inner,
            "top_k": self.top_k,
            "num_experts": experts,
            "fully_sharded": self.fully_sharded,
            "shared_loras": self.shared_loras,
            "shards": shards,
            "global_experts": self.global_experts or everywhere or experts,
        }

    @property
    def kind(self) -> tuple[object, ...]:
        """What says which kernel it is, whatever the batch size."""
        outer = (self.op, self.max_loras, self.num_slices, self.add_inputs)
        return *outer, self.rank, self.hidden_size, self.moe_intermediate_size

    def with_tensors_of(self, other: _LookUp) -> _LookUp:
        """The look-up with the tensors of another one of its kernel, where its own were unseen."""
        if self.lora_a or self.lora_b:
            return self
        return other.model_copy(update={"batch": self.batch})

    @property
    def layer(self) -> tuple[object, ...]:
        """What the ops of a MoE layer have in common, whichever knew its experts."""
        return self.max_loras, self.hidden_size, self.top_k, self.lora_a and self.lora_a[0][1]


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
    notes = [f"{source}: {line}" for line in _told(left_out)]
    return Trace(
        source=source,
        release=header.vllm,
        gpu=header.gpu,
        asked=tuple(asked.values()),
        notes=tuple(notes),
    )


_Name = tuple[str, int]


def _header(source: str, text: bytes) -> _Header:
    if not text:
        return _Header.model_validate({})
    if SCHEMA.encode() not in text:
        raise InputError(
            f"{source} is no trace: its first line has no schema {SCHEMA!r}; give the file that "
            "autotune trace wrote"
        )
    with _named(source, 1):
        return read_json(_Header, text)


def _read(
    source: str, lines: Iterator[bytes]
) -> tuple[dict[_Name, tuple[int, _LookUp]], dict[_Name, _Figures]]:
    """The first line of every look-up, with its number in the file, and its latest figures."""
    firsts: dict[_Name, tuple[int, _LookUp]] = {}
    latest: dict[_Name, _Figures] = {}
    for number, text in enumerate(lines, start=2):
        if not text.endswith(b"\n") or text.startswith(b'{"schema"'):  # of a trace put after it
            continue
        with _named(source, number):
            figures = read_json(_Figures, text)
            name = figures.process, figures.number
            if name not in firsts:
                firsts[name] = number, read_json(_LookUp, text)
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
    firsts: Mapping[_Name, tuple[int, _LookUp]], latest: Mapping[_Name, _Figures]
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
