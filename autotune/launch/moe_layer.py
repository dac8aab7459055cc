"""Which shapes belong to one layer of a mixture of experts, whose four ops share a ``block_m``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayer:
    """What the four ops of one MoE layer have in common, for one batch.

    The fields are those of ``KernelShape``, but ``rank`` is the server's: with fully-sharded LoRAs
    vLLM looks up w13 by a part of the rank, and w2 by the whole.

    ``intermediate_size`` and ``num_slices`` are left out, since w13 and w2 may differ in them: if a
    model fuses gate and up, w13 has one slice of twice the size. So the layers of two models that
    differ in nothing else get one ``block_m``, which is right for both, if not the best for each.
    """

    max_loras: int
    num_tokens: int
    rank: int
    hidden_size: int
    dtype: str
    active_loras: int
    num_experts: int
    top_k: int
    routing: str
    fully_sharded: bool
    shards: int
    global_experts: int
    shared_loras: bool
    dual_stream: bool
    specialize_active_lora: bool

    @classmethod
    def of(cls, shape: KernelShape) -> MoeLayer:
        """The layer of a MoE op's shape."""
        values = {field.name: getattr(shape, field.name) for field in fields(cls)}
        return cls(**values | {"rank": shape.server_rank})

    @property
    def label(self) -> str:
        """The layer in messages: ``m=16,rank=256,hidden=2048,experts=128,top_k=8,max_loras=8``.

        Values other than the default are added, as in a shape's label.
        """
        parts = [f"m={self.num_tokens}", f"rank={self.rank}", f"hidden={self.hidden_size}"]
        parts += [f"experts={self.num_experts}", f"top_k={self.top_k}"]
        parts += [f"max_loras={self.max_loras}"]
        if self.active_loras != self.max_loras:
            parts.append(f"active_loras={self.active_loras}")
        parts += [] if self.dtype == "bfloat16" else [f"dtype={self.dtype}"]
        parts += [] if self.routing == "uniform" else [f"routing={self.routing}"]
        parts += ["fully_sharded"] if self.fully_sharded else []
        parts += [f"shards={self.shards}"] if self.shards > 1 else []
        if self.global_experts != self.num_experts:
            parts.append(f"global_experts={self.global_experts}")
        flags = ("shared_loras", "dual_stream", "specialize_active_lora")
        parts += [name for name in flags if getattr(self, name)]
        return ",".join(parts)


def by_layer(
    items: Iterable[_T], shape_of: Callable[[_T], KernelShape]
) -> dict[MoeLayer, list[_T]]:
    """The items of MoE ops, by layer; those of other ops are left out."""
    layers: dict[MoeLayer, list[_T]] = {}
    for item in items:
        shape = shape_of(item)
        if shape.op.is_moe:
            layers.setdefault(MoeLayer.of(shape), []).append(item)
    return layers


def missing_ops(shapes: Iterable[KernelShape]) -> tuple[LoraOp, ...]:
    """The MoE ops, of the four, for which a layer has no shape."""
    there = {shape.op for shape in shapes}
    return tuple(op for op in MOE_OPS if op not in there)


def names_of(ops: Sequence[LoraOp]) -> str:
    """Ops in a message, such as ``w13_shrink, w13_expand``."""
    return ", ".join(op.value.removeprefix("fused_moe_lora_") for op in ops)
