"""Gemma 4: layers differ in their heads, in whether they have keys of their own, and in width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.plan.models.modules import OUTSIDE, Architecture
from autotune.plan.models.table.blocks import (
    VOCABULARY_IF_NAMED,
    Block,
    Q,
    attention,
    column,
    mlp,
    replicated,
    row,
)
from autotune.plan.models.table.experts import experts, router
from autotune.plan.models.table.layer_kinds import attention_kinds, if_many, is_late

_heads = attention_kinds("sliding_attention", "full_attention", fields=("layer_types",))


def _own_or_shared(config: Mapping[str, Any], index: int) -> str:
    """Whether a layer's keys are its own, with the kind of its attention."""
    keys = "shared" if is_late(config, index) else "own"
    return f"{_heads(config, index)}, {keys} keys"


def _width(config: Mapping[str, Any], index: int) -> str:
    is_wide = config.get("use_double_wide_mlp") and is_late(config, index)
    return "wide" if is_wide else "narrow"


def _attention(kind: str, q: str) -> Block:
    return (
        column("self_attn.q_proj", q, where=f"{kind}, shared keys"),
        row("self_attn.o_proj", q, where=kind),
    )


_FULL_Q = "num_attention_heads * global_head_dim"
_OWN = "full_attention, own keys"


GEMMA_4 = Architecture(
    modules=(
        column(
            "per_layer_model_projection",
            # The GPUs divide the whole, whose first factor has more divisors.
            "hidden_size_per_layer_input * num_hidden_layers",
            where=OUTSIDE,
            if_given="hidden_size_per_layer_input",
        ),
        *attention(where="sliding_attention, own keys")[:1],
        *_attention("sliding_attention", Q),
        *attention(
            q=_FULL_Q,
            kv="num_global_key_value_heads * global_head_dim",
            where=_OWN,
            if_given="attention_k_eq_v",
        )[:1],
        *attention(
            q=_FULL_Q,
            kv="num_key_value_heads * global_head_dim",
            where=_OWN,
            if_absent="attention_k_eq_v",
        )[:1],
        *_attention("full_attention", _FULL_Q),
        *mlp(where="narrow"),
        column(
            "mlp.gate_up_proj",
            *("intermediate_size * 2", "intermediate_size * 2"),
            parts=("gate_proj", "up_proj"),
            where="wide",
        ),
        row("mlp.down_proj", "intermediate_size * 2", where="wide"),
        router("router.proj", "num_experts"),
        experts("experts", top_k="top_k_experts"),
        replicated(
            "per_layer_input_gate",
            "hidden_size_per_layer_input",
            if_given="hidden_size_per_layer_input",
        ),
        replicated(
            "per_layer_projection",
            "hidden_size",
            reads="hidden_size_per_layer_input",
            if_given="hidden_size_per_layer_input",
        ),
        *VOCABULARY_IF_NAMED,
    ),
    kinds=(_heads, _own_or_shared, _width, if_many("num_experts", size="moe_intermediate_size")),
    defaults={
        "global_head_dim": 512,
        "num_global_key_value_heads": "num_key_value_heads",
    },
)
