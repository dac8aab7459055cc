"""KernelShape: everything that decides how fast a LoRA kernel runs, except its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from autotune.errors import ShapeError
from autotune.ops import DENSE_OPS, VLLM_RANKS, LoraOp

#: Bytes of one weight, per dtype that vLLM's LoRA kernels take.
DTYPE_BYTES = {"bfloat16": 2, "float16": 2}

_SIZES = ("num_tokens", "hidden_size", "rank", "num_slices", "max_loras", "active_loras")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """One kernel launch as a model makes it.

    Attributes:
        op: The kernel.
        num_tokens: Tokens in the batch (m).
        hidden_size: ``shrink``: size of the input (k). ``expand``: size of the largest slice (n).
        rank: The server's ``--max-lora-rank``; every adapter is padded to it.
        num_slices: Packed projections: 3 for qkv, 2 for gate and up, 1 otherwise.
        slice_sizes: Output size of each slice; ``expand`` only, empty for ``shrink``.
        max_loras: As given to vLLM, without the slot for "no LoRA".
        active_loras: Adapters that the tokens are spread over, at most ``max_loras``.
        dtype: Of the weights: ``bfloat16`` or ``float16``.
        add_inputs: ``expand`` only: whether the result is added to the output, as vLLM does
            in normal serving.
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

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> KernelShape:
        """Read a shape from a study file's or a recording's table.

        ``slice_sizes`` gives ``hidden_size`` and ``num_slices`` of an ``expand``; absent keys take
        ``active_loras = max_loras``, ``dtype = "bfloat16"``, ``num_slices = 1`` and
        ``add_inputs = true``.

        Raises:
            ShapeError: A key is unknown, missing, of the wrong type or out of range.
        """
        known = {field.name for field in fields(cls)}
        for key in table:
            if key not in known:
                raise ShapeError(f"a shape has no field {key!r}; it has {', '.join(sorted(known))}")
        op = _op(table.get("op"))
        values = dict(table, op=op)
        values["slice_sizes"] = _slice_sizes(op, values)
        if values["slice_sizes"]:
            values["hidden_size"] = max(values["slice_sizes"])
            values["num_slices"] = len(values["slice_sizes"])
        values.setdefault("num_slices", 1)
        values.setdefault("active_loras", values.get("max_loras"))
        values.setdefault("dtype", "bfloat16")
        values["add_inputs"] = op is LoraOp.EXPAND and values.get("add_inputs", True)
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
        return table

    @property
    def lookup_key(self) -> tuple[int, ...]:
        """The keys under which vLLM looks this shape's entry up, outermost first."""
        return self.op.lookup_key(
            max_loras=self.max_loras,
            num_slices=self.num_slices,
            num_tokens=self.num_tokens,
            hidden_size=self.hidden_size,
            rank=self.rank,
        )

    def file_name(self, gpu: str) -> str:
        """The file that vLLM reads this shape's entry from."""
        return self.op.file_name(gpu, add_inputs=self.add_inputs)

    @property
    def loras_with_tokens(self) -> int:
        """Adapters that really get a token: a batch cannot use more of them than it has tokens."""
        return min(self.active_loras, self.num_tokens)

    @property
    def label(self) -> str:
        """The shape's part of a study's name, such as ``m=16,k=4096,n=16,slices=3,max_loras=8``.

        What is not at its default is added, so that different shapes have different labels.
        """
        _, _, m, k, n = self.lookup_key
        parts = [f"m={m}", f"k={k}", f"n={n}", f"slices={self.num_slices}"]
        parts.append(f"max_loras={self.max_loras}")
        if self.active_loras != self.max_loras:
            parts.append(f"active_loras={self.active_loras}")
        if len(set(self.slice_sizes)) > 1:
            parts.append("sizes=" + "+".join(map(str, self.slice_sizes)))
        if self.dtype != "bfloat16":
            parts.append(f"dtype={self.dtype}")
        if self.op is LoraOp.EXPAND and not self.add_inputs:
            parts.append("add_inputs=false")
        return ",".join(parts)


def _op(value: object) -> LoraOp:
    names = ", ".join(op.value for op in DENSE_OPS)
    try:
        op = LoraOp(value)
    except ValueError:
        raise ShapeError(f"unknown op: got {value!r}; use one of {names}") from None
    if op.is_moe:
        raise ShapeError(f"shapes of MoE ops are not built yet: got {op.value}; use one of {names}")
    return op


def _slice_sizes(op: LoraOp, values: Mapping[str, Any]) -> tuple[int, ...]:
    """The output size of every slice; checks that the two ways to give them agree."""
    given = values.get("slice_sizes")
    absent = given is None or given == ()
    if op is LoraOp.SHRINK:
        if not absent:
            raise ShapeError(f"shrink takes num_slices, not slice_sizes: got {given!r}")
        return ()
    if absent:
        slices = _size("num_slices", values.get("num_slices", 1))
        return (_size("hidden_size", values.get("hidden_size")),) * slices
    if not isinstance(given, list | tuple) or not given:
        raise ShapeError(f"slice_sizes must be a list of sizes: got {given!r}")
    sizes = tuple(_size("slice_sizes", size) for size in given)
    for key, expected in (("hidden_size", max(sizes)), ("num_slices", len(sizes))):
        if values.get(key, expected) != expected:
            raise ShapeError(
                f"{key} contradicts slice_sizes {list(sizes)}: got {values[key]}; "
                f"leave it out, or give {expected}"
            )
    return sizes


def _size(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        got = "nothing" if value is None else repr(value)
        raise ShapeError(f"{name} must be a whole number: got {got}")
    if value < 1:
        raise ShapeError(f"{name} must be 1 or more: got {value}")
    return value


def _check(values: Mapping[str, Any]) -> None:
    for name in _SIZES:
        _size(name, values.get(name))
    if values["rank"] not in VLLM_RANKS:
        allowed = ", ".join(map(str, VLLM_RANKS))
        raise ShapeError(f"rank is not one that vLLM allows: got {values['rank']}; use {allowed}")
    if values["active_loras"] > values["max_loras"]:
        raise ShapeError(
            f"active_loras cannot exceed max_loras: "
            f"got {values['active_loras']} of {values['max_loras']}"
        )
    if values["dtype"] not in tuple(DTYPE_BYTES):  # a list cannot be looked up in a dict
        raise ShapeError(
            f"unknown dtype: got {values['dtype']!r}; use {' or '.join(sorted(DTYPE_BYTES))}"
        )
    if not isinstance(values["add_inputs"], bool):
        raise ShapeError(f"add_inputs must be true or false: got {values['add_inputs']!r}")
