"""KernelShape: everything that decides how fast a LoRA kernel runs, except its configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from autotune.errors import ShapeError, shown
from autotune.launch.op import VLLM_RANKS, LookupKey, LoraOp

#: Bytes of one weight, per dtype that vLLM's LoRA kernels take.
DTYPE_BYTES = {"bfloat16": 2, "float16": 2}

#: The largest size: vLLM's kernels are given sizes as 32-bit integers.
LARGEST_SIZE = 2**31 - 1

#: More slices than any model packs into one module: the most known is six.
_MOST_SLICES = 64

_SIZES = ("num_tokens", "hidden_size", "rank", "num_slices", "max_loras", "active_loras")

#: Every part of a rank that one GPU may hold if fully-sharded LoRAs divide it.
RANKS_ON_GPU = {part for rank in VLLM_RANKS for part in range(1, rank + 1) if rank % part == 0}

#: Sizes that only the ops of a mixture of experts have.
_MOE_SIZES = ("num_experts", "top_k", "intermediate_size")

#: Fields that only the ops of a mixture of experts have.
_MOE_FIELDS = (*_MOE_SIZES, "routing", "fully_sharded", "shards", "global_experts", "shared_loras")

#: Flags of a server that change how every op is launched.
_LAUNCH_FLAGS = ("dual_stream", "specialize_active_lora")

#: How tokens choose their experts: all experts alike, some far more often, or N of them only.
_ROUTING = re.compile(r"uniform|zipf|hit=([1-9][0-9]{0,5})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """One kernel launch as a model makes it.

    Attributes:
        op: The kernel.
        num_tokens: Tokens in the batch (m).
        hidden_size: ``shrink``: size of the input (k). ``expand``: size of the largest slice (n).
            MoE ops: the model's hidden size, for all four, though w2's expand writes only a part
            of it where LoRAs are fully sharded.
        rank: The server's ``--max-lora-rank``; every adapter is padded to it. With fully-sharded
            LoRAs, ``shrink`` and the two w13 ops have the part of it that one GPU holds: vLLM looks
            up both w13 ops by that part, though w13's expand runs on the whole rank.
        num_slices: Packed projections: 3 for qkv, 2 for gate and up, 1 otherwise. w13 has 2, or 1
            in models whose experts are one fused tensor; w2 has 1.
        slice_sizes: Output size of each slice; ``expand`` only, empty for ``shrink``.
        max_loras: As given to vLLM, without the slot for "no LoRA".
        active_loras: Number of adapters that the tokens are spread over, at most ``max_loras``.
        dtype: Of the weights: ``bfloat16`` or ``float16``.
        add_inputs: ``expand`` only: whether the result is added to the output, as vLLM does
            in normal serving.
        num_experts: MoE ops only, 0 for others: experts on this device.
        top_k: MoE ops only: experts that each token goes to, on whatever device.
        intermediate_size: MoE ops only: w13: output size of each slice; w2: size of the input; both
            per tensor-parallel rank, as vLLM allocates the weights.
        routing: MoE ops only: ``uniform``, ``zipf``, or ``hit=N`` where only N experts get tokens.
        fully_sharded: MoE ops only: whether the server runs with ``--fully-sharded-loras``.
        shards: MoE ops only: number of GPUs that fully-sharded LoRAs divide the rank of w13 and the
            output of w2 among.
        global_experts: MoE ops only: experts of the layer on all devices; more than
            ``num_experts`` where the server runs with ``--enable-expert-parallel``.
        shared_loras: MoE ops only: whether the server runs with ``--enable-moe-shared-loras``: the
            experts share w13's A and w2's B, which have a stride of 0 from expert to expert.
        dual_stream: Whether the server runs with ``VLLM_LORA_ENABLE_DUAL_STREAM``: from Hopper on
            the dense kernels are launched dependent on the ones before, and the MoE expands
            overwrite their output.
        specialize_active_lora: Whether the server runs with ``--specialize-active-lora``: the grid
            has room for the adapters in use, and not for ``max_loras``.
    """

    op: LoraOp
    num_tokens: int
    hidden_size: int
    rank: int
    num_slices: int
    slice_sizes: tuple[int, ...]
    max_loras: int
    active_loras: int
    dtype: str
    add_inputs: bool
    num_experts: int = 0
    top_k: int = 0
    intermediate_size: int = 0
    routing: str = ""
    fully_sharded: bool = False
    shards: int = 1
    global_experts: int = 0
    shared_loras: bool = False
    dual_stream: bool = False
    specialize_active_lora: bool = False

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> KernelShape:
        """Read a shape from a study file's or a recording's table.

        The ``slice_sizes`` of an ``expand`` give its ``hidden_size`` and ``num_slices``. The
        defaults of other absent keys are ``active_loras = max_loras``, ``dtype = "bfloat16"``,
        ``num_slices = 1`` (w13: 2), ``add_inputs = true``, ``routing = "uniform"``,
        ``shards = 1`` and ``global_experts = num_experts``, and false for the server's flags.

        Raises:
            ShapeError: A key is unknown, missing, of the wrong type or out of range.
        """
        if not isinstance(table, Mapping):
            raise ShapeError(f"a shape must be an object: got {shown(table)}")
        known = {field.name for field in fields(cls)}
        for key in table:
            if key not in known:
                raise ShapeError(
                    f"a shape has no field {shown(key)}; it has {', '.join(sorted(known))}"
                )
        op = _op(table.get("op"))
        values = dict(table, op=op)
        values["slice_sizes"] = _slice_sizes(op, values)
        if values["slice_sizes"]:
            values["hidden_size"] = max(values["slice_sizes"])
            values["num_slices"] = len(values["slice_sizes"])
        values.setdefault("num_slices", 2 if op in _W13 else 1)
        values.setdefault("active_loras", values.get("max_loras"))
        values.setdefault("dtype", "bfloat16")
        values["add_inputs"] = op is LoraOp.EXPAND and values.get("add_inputs", True)
        if op.is_moe:
            values.setdefault("routing", "uniform")
            values.setdefault("global_experts", values.get("num_experts"))
        _check(values)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The shape as JSON-ready values; ``from_mapping`` reads it back."""
        table: dict[str, Any] = {
            "op": self.op.value,
            "num_tokens": self.num_tokens,
            "hidden_size": self.hidden_size,
            "rank": self.rank,
            "num_slices": self.num_slices,
            "max_loras": self.max_loras,
            "active_loras": self.active_loras,
            "dtype": self.dtype,
        }
        if self.op is LoraOp.EXPAND:
            if len(set(self.slice_sizes)) > 1:
                table["slice_sizes"] = list(self.slice_sizes)
            table["add_inputs"] = self.add_inputs
        if self.op.is_moe:
            on_one = {"shards": 1, "global_experts": self.num_experts, "shared_loras": False}
            given = {name: getattr(self, name) for name in _MOE_FIELDS}
            table |= {name: value for name, value in given.items() if value != on_one.get(name)}
        table |= {name: True for name in _LAUNCH_FLAGS if getattr(self, name)}
        return table

    @property
    def lookup_key(self) -> LookupKey:
        """The key under which vLLM looks up this shape's entry."""
        return self.op.lookup_key(
            max_loras=self.max_loras,
            num_slices=self.num_slices,
            num_tokens=self.num_tokens,
            hidden_size=self.hidden_size,
            rank=self.rank,
            intermediate_size=self.intermediate_size,
        )

    def file_name(self, gpu: str) -> str:
        """The file that vLLM reads this shape's entry from."""
        return self.op.file_name(gpu, add_inputs=self.add_inputs)

    @property
    def without_batch(self) -> KernelShape:
        """The shape with one token: the same for shapes that differ in ``num_tokens`` only."""
        return replace(self, num_tokens=1)

    @property
    def server_rank(self) -> int:
        """The server's ``--max-lora-rank`` for a MoE op; for a dense op the same as ``rank``."""
        return self.rank * self.shards if self.op in _W13 else self.rank

    @property
    def written_size(self) -> int:
        """MoE ops: size of the part of the hidden size that w2's expand writes on this device."""
        return self.hidden_size // self.shards

    @property
    def loras_with_tokens(self) -> int:
        """Number of adapters that get a token: a batch uses at most one adapter per token."""
        return min(self.active_loras, self.num_tokens)

    @property
    def lora_slots(self) -> int:
        """LoRAs that a grid has room for: with one for "no LoRA", unless it is specialized."""
        if not self.specialize_active_lora:
            return self.max_loras + 1
        return launched_loras(self.loras_with_tokens, self.max_loras)

    @property
    def launches(self) -> tuple[int, ...]:
        """Every ``lora_slots`` with which vLLM launches this op, and looks up this very key."""
        if not self.specialize_active_lora:
            return (self.max_loras + 1,)
        most = min(self.num_tokens, self.max_loras + 1)  # one token may be without LoRA
        found = {launched_loras(count, self.max_loras) for count in range(1, most + 1)}
        return tuple(sorted(found))

    @property
    def label(self) -> str:
        """The shape's part of a study's name, such as ``m=16,k=4096,n=16,slices=3,max_loras=8``.

        Values other than the default are added, so that different shapes have different labels.
        """
        key = self.lookup_key
        parts = [f"m={key.m}", f"k={key.k}", f"n={key.n}", f"slices={key.num_slices}"]
        parts.append(f"max_loras={self.max_loras}")
        if self.active_loras != self.max_loras:
            parts.append(f"active_loras={self.active_loras}")
        if len(set(self.slice_sizes)) > 1:
            parts.append("sizes=" + "+".join(map(str, self.slice_sizes)))
        if self.dtype != "bfloat16":
            parts.append(f"dtype={self.dtype}")
        if self.op is LoraOp.EXPAND and not self.add_inputs:
            parts.append("add_inputs=false")
        if self.op.is_moe:
            parts += [f"i={self.intermediate_size}", f"experts={self.num_experts}"]
            parts.append(f"top_k={self.top_k}")
            parts += [] if self.routing == "uniform" else [f"routing={self.routing}"]
            parts += ["fully_sharded"] if self.fully_sharded else []
            parts += [f"shards={self.shards}"] if self.shards > 1 else []
            if self.global_experts != self.num_experts:
                parts.append(f"global_experts={self.global_experts}")
            parts += ["shared_loras"] if self.shared_loras else []
        parts += [name for name in _LAUNCH_FLAGS if getattr(self, name)]
        return ",".join(parts)


def launched_loras(active: int, max_loras: int) -> int:
    """The adapters in a specialized grid: vLLM rounds their number up to one that it captures.

    It captures powers of two and ``max_loras + 1`` (``get_captured_lora_counts`` in
    ``vllm/lora/utils.py``, 0.22.1 to 0.33.0).

    Args:
        active: Adapters in use, "no LoRA" among them where a token has none.
        max_loras: As given to vLLM.
    """
    return min(1 << (active - 1).bit_length(), max_loras + 1)


_W13 = (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND)


def _op(value: object) -> LoraOp:
    try:
        return LoraOp(value)
    except ValueError:
        names = ", ".join(op.value for op in LoraOp)
        raise ShapeError(f"unknown op: got {shown(value)}; use one of {names}") from None


def _slice_sizes(op: LoraOp, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The output size of every slice; empty for ops other than ``expand``.

    Raises:
        ShapeError: The sizes are wrong, or contradict ``hidden_size`` or ``num_slices``.
    """
    given = values.get("slice_sizes")
    absent = given is None or given == ()
    if op is not LoraOp.EXPAND:
        if not absent:
            raise ShapeError(f"{op.value} takes num_slices, not slice_sizes: got {shown(given)}")
        return ()
    if absent:
        slices = _size("num_slices", values.get("num_slices", 1))
        return (_size("hidden_size", values.get("hidden_size")),) * slices
    if not isinstance(given, list | tuple) or not given:
        raise ShapeError(f"slice_sizes must be a list of sizes: got {shown(given)}")
    _size("num_slices", len(given))
    sizes = tuple(_size("slice_sizes", size) for size in given)
    for key, expected in (("hidden_size", max(sizes)), ("num_slices", len(sizes))):
        if values.get(key, expected) != expected:
            raise ShapeError(
                f"{key} contradicts slice_sizes {list(sizes)}: got {shown(values[key])}; "
                f"leave it out, or give {expected}"
            )
    return sizes


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        got = "nothing" if value is None else shown(value)
        raise ShapeError(f"{name} must be a whole number: got {got}")
    if value < 1:
        raise ShapeError(f"{name} must be 1 or more: got {shown(value)}")
    largest = _MOST_SLICES if name == "num_slices" else LARGEST_SIZE
    if value > largest:
        raise ShapeError(f"{name} must be {largest} or less: got {shown(value)}")
    return value


def _check(values: Mapping[str, Any]) -> None:
    for name in _SIZES:
        _size(name, values.get(name))
    if not _is_rank(values):
        allowed = ", ".join(map(str, VLLM_RANKS))
        raise ShapeError(f"rank is not one that vLLM allows: got {values['rank']}; use {allowed}")
    if values["active_loras"] > values["max_loras"]:
        raise ShapeError(
            f"active_loras cannot exceed max_loras: "
            f"got {values['active_loras']} of {values['max_loras']}"
        )
    if values["dtype"] not in tuple(DTYPE_BYTES):  # a list cannot be looked up in a dict
        raise ShapeError(
            f"unknown dtype: got {shown(values['dtype'])}; use {' or '.join(sorted(DTYPE_BYTES))}"
        )
    _check_bool("add_inputs", values["add_inputs"])
    for name in _LAUNCH_FLAGS:
        _check_bool(name, values.get(name, False))
    if values["op"].is_moe:
        _check_moe(values)
    else:
        _check_dense(values)


def _is_rank(values: Mapping[str, Any]) -> bool:
    """Whether vLLM allows the rank, or a multiple of it that fully-sharded LoRAs divide."""
    rank, shards = values["rank"], values.get("shards", 1)
    if values["op"] is LoraOp.SHRINK:
        return rank in RANKS_ON_GPU
    if values["op"] in _W13 and isinstance(shards, int) and shards > 0:
        return rank * shards in VLLM_RANKS
    return rank in VLLM_RANKS


def _check_dense(values: Mapping[str, Any]) -> None:
    for name in _MOE_FIELDS:
        if name in values:
            op = values["op"].value
            raise ShapeError(f"{op} has no {name}, only MoE ops do: got {shown(values[name])}")


def _check_moe(values: Mapping[str, Any]) -> None:
    op = values["op"]
    for name in _MOE_SIZES:
        _size(name, values.get(name))
    most = 2 if op in _W13 else 1
    if values["num_slices"] > most:
        raise ShapeError(f"{op.value} has at most {most} slices: got {values['num_slices']}")
    _check_parallel(values)
    experts, top_k, routing = values["global_experts"], values["top_k"], values["routing"]
    if top_k > experts:
        raise ShapeError(f"top_k cannot exceed num_experts: got {top_k} of {experts}")
    match = _ROUTING.fullmatch(routing) if isinstance(routing, str) else None
    if match is None:
        raise ShapeError(f"routing must be uniform, zipf or hit=N: got {shown(routing)}")
    if match[1] and not top_k <= int(match[1]) <= experts:
        raise ShapeError(
            f"routing must hit {top_k} (top_k) to {experts} (num_experts) experts: "
            f"got {shown(routing)}"
        )
    for name in ("fully_sharded", "shared_loras"):
        _check_bool(name, values.get(name, False))


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ShapeError(f"{name} must be true or false: got {shown(value)}")


def _check_parallel(values: Mapping[str, Any]) -> None:
    """Check how GPUs share the layer; vLLM cannot divide both its ranks and its experts."""
    shards = _size("shards", values.get("shards", 1))
    everywhere = _size("global_experts", values["global_experts"])
    if everywhere < values["num_experts"]:
        raise ShapeError(
            f"global_experts cannot be fewer than num_experts: "
            f"got {everywhere} for {values['num_experts']}"
        )
    if shards > 1 and not values.get("fully_sharded"):
        raise ShapeError(f"shards need fully_sharded = true: got {shards} without")
    if values["hidden_size"] % shards:
        hidden_size = values["hidden_size"]
        raise ShapeError(f"shards must divide hidden_size: got {shards} for {hidden_size}")
    if values.get("fully_sharded") and everywhere > values["num_experts"]:
        raise ShapeError(
            "vLLM has no fully-sharded LoRAs with expert parallelism: got fully_sharded = true and "
            f"{everywhere} global_experts for {values['num_experts']}"
        )
