"""Blocks of mixtures of experts: routers, shared experts and routed ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autotune.plan.models.modules import DENSE, SPARSE, Architecture, Module, Split
from autotune.plan.models.table.blocks import Block, mlp, replicated


def router(name: str, writes: str, **more: Any) -> Module:  # noqa: ANN401 - fields of Module
    """The linear layer that chooses the experts; every GPU has all of it."""
    return replicated(name, writes, **({"where": SPARSE} | more))


#: The first release whose experts are their runner (vLLM #41184). Those that a router is handed to
#: call it beneath its LoRA: ``_held_by_experts`` in ``asking/wrapped.py`` says how.
_RUNNERS_SINCE = "0.24"


def handed_router(name: str, writes: str) -> Module:
    """A router that the model's class gives to the experts, which call it themselves."""
    return router(name, writes, unused_since=_RUNNERS_SINCE)


def experts(  # noqa: PLR0913 - what models differ in
    name: str = "mlp.experts",
    size: str = "moe_intermediate_size",
    number: str = "num_experts",
    *,
    top_k: str = "num_experts_per_tok",
    parts: tuple[str, ...] = ("0.gate_proj", "0.up_proj", "0.down_proj"),
    reads: str = "hidden_size",
    where: str = SPARSE,
) -> Module:
    """A fused mixture of experts, with gate and up as two slices of w13.

    Args:
        name: The module's name.
        size: What gate and up write each, a formula.
        number: How many experts there are, a formula.
        top_k: How many experts a token goes to, a formula.
        parts: What adapters call the layers of an expert.
        reads: What an expert reads and writes, a formula.
        where: The kind of decoder layers that have it.
    """
    return Module(
        name=name,
        split=Split.EXPERTS,
        reads=reads,
        writes=(size, size),
        parts=parts,
        # New checkpoints have one parameter for all experts' gate and up and one for all their
        # down, which an adapter may name.
        parameters=("gate_up_proj", "down_proj"),
        where=where,
        number=number,
        top_k=top_k,
    )


def fused(module: Module) -> Module:
    """Experts whose adapters have gate and up in one tensor (``is_3d_moe_weight``): one slice."""
    return replace(
        module,
        writes=(" + ".join(module.writes),),
        parts=(),
        is_linear=False,
    )


def ungated(module: Module) -> Module:
    """Experts without a gate (``is_non_gated_moe``): one slice, of which w2 reads all."""
    return replace(module, writes=module.writes[:1], is_gated=False)


_BLOCK_SPARSE_EXPERTS = experts(
    "block_sparse_moe.experts", "intermediate_size", "num_local_experts"
)

#: Mixtral's, which some models have taken over.
BLOCK_SPARSE: Block = (
    router("block_sparse_moe.gate", "num_local_experts"),
    replace(_BLOCK_SPARSE_EXPERTS, parts=("0.w1", "0.w3", "0.w2")),
)

#: The same where the layers of an expert are called as elsewhere: Granite.
GRANITE_EXPERTS: Block = (BLOCK_SPARSE[0], _BLOCK_SPARSE_EXPERTS)

_SHARED = "shared_expert_intermediate_size"

#: Experts of Qwen and a shared one, the latter with a gate of its own; all but the router.
_QWEN_EXPERTS: Block = (
    router("mlp.shared_expert_gate", "1", if_given=_SHARED),
    *mlp("mlp.shared_expert", _SHARED, where=SPARSE, if_given=_SHARED),
    experts(),
)

#: Qwen's experts up to the second generation, and since the third.
QWEN_2_EXPERTS: Block = (router("mlp.gate", "num_experts"), *_QWEN_EXPERTS)
QWEN_EXPERTS: Block = (handed_router("mlp.gate", "num_experts"), *_QWEN_EXPERTS)


def deepseek_experts(
    number: str = "n_routed_experts",
    shared: str = "n_shared_experts",
    *,
    top_k: str = "num_experts_per_tok",
    size: str = "",
    is_handed: bool = False,
) -> Block:
    """Dense layers, and mixtures of a router, shared experts as one, and routed experts.

    Args:
        number: The field with the number of routed experts.
        shared: The field with the number of shared ones; models without them have none.
        top_k: The field with how many experts a token goes to.
        size: What the shared experts write together, a formula; that of as many experts if none.
        is_handed: Whether the router is as of ``handed_router``.
    """
    together = size or f"moe_intermediate_size * {shared}"
    return (
        *mlp(where=DENSE),
        (handed_router if is_handed else router)("mlp.gate", number),
        *mlp("mlp.shared_experts", together, where=SPARSE, if_given=shared),
        experts(number=number, top_k=top_k),
    )


def with_fused_experts(architecture: Architecture) -> Architecture:
    """The same language model where a wrapper's class says ``is_3d_moe_weight``."""
    modules = [fused(each) if each.number else each for each in architecture.modules]
    return replace(architecture, modules=tuple(modules))
