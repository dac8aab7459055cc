"""The blocks that decoder layers are built of: attention, feed forward, vocabulary.

A block is a few modules with their sizes, which many architectures share. A size is a formula over
the fields of ``config.json``: a sum of products, such as ``num_attention_heads * head_dim``.
**Tensor parallelism divides the first factor of each product**: write the number of heads before
the size of a head, since a GPU has whole heads. How vLLM divides a module is said by the class that
the model's file in ``vllm/model_executor/models/`` gives it (here: of 0.33.0):

=========================================  ========================================================
vLLM's class                               here
=========================================  ========================================================
``QKVParallelLinear``,                     ``Split.COLUMN``; a slice per entry of the model's
``MergedColumnParallelLinear``,            ``packed_modules_mapping``, or one slice with the sum
``ColumnParallelLinear``                   where the module is the only entry
``RowParallelLinear``                      ``Split.ROW``
``ReplicatedLinear``, ``GateLinear``,      ``Split.REPLICATED``
``disable_tp``
``FusedMoEFactory`` (once ``FusedMoE``)    ``Split.EXPERTS``
``VocabParallelEmbedding``                 ``Split.EMBEDDING``
``ParallelLMHead``                         ``Split.LOGITS``
=========================================  ========================================================

With no ``--lora-target-modules`` all linear layers have LoRA, routers too. The embedding and the
logits have it only where the model's class lists them in ``embedding_modules``. Biases are left
out: they do not change the shapes of LoRA.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autotune.plan.models.modules import OUTSIDE, Module, Split

Block = tuple[Module, ...]

# --------------------------------------------------------------------------- single modules


def column(name: str, *writes: str, reads: str = "hidden_size", **more: Any) -> Module:  # noqa: ANN401 - fields of Module
    """A module whose output the GPUs divide, with a slice for each size that it writes."""
    return Module(name=name, split=Split.COLUMN, reads=reads, writes=writes, **more)


def row(name: str, reads: str, writes: str = "hidden_size", **more: Any) -> Module:  # noqa: ANN401 - fields of Module
    """A module whose input the GPUs divide."""
    return Module(name=name, split=Split.ROW, reads=reads, writes=(writes,), **more)


def replicated(name: str, *writes: str, reads: str = "hidden_size", **more: Any) -> Module:  # noqa: ANN401 - fields of Module
    """A module that every GPU has all of."""
    return Module(name=name, split=Split.REPLICATED, reads=reads, writes=writes, **more)


def moved(block: Block, **changes: Any) -> Block:  # noqa: ANN401 - fields of Module
    """A block with other values of some fields, such as ``where``."""
    return tuple(replace(module, **changes) for module in block)


# --------------------------------------------------------------------------- attention

Q = "num_attention_heads * head_dim"
KV = "num_key_value_heads * head_dim"
_QKV = ("q_proj", "k_proj", "v_proj")


def attention(
    name: str = "self_attn",
    *,
    qkv: str = "qkv_proj",
    out: str = "o_proj",
    parts: tuple[str, ...] = _QKV,
    q: str = Q,
    kv: str = KV,
    **more: Any,  # noqa: ANN401 - fields of Module
) -> Block:
    """Attention with q, k and v as the slices of one module.

    Args:
        name: The path of the block below a decoder layer.
        qkv: What vLLM calls the module that writes q, k and v.
        out: What it calls the one that writes the block's output.
        parts: What adapters call the slices; empty where checkpoints have all in one tensor, so
            that an adapter has one A and one B for all.
        q: The size of the queries, a formula.
        kv: The size of the keys, and of the values, a formula.
        more: Fields of both modules.
    """
    prefix = f"{name}." if name else ""
    writes = (q, kv, kv) if parts else (f"{q} + {kv} + {kv}",)
    return (
        column(f"{prefix}{qkv}", *writes, parts=parts, **more),
        row(f"{prefix}{out}", q, **more),
    )


ATTENTION = attention()
ATTENTION_IN_ONE = attention(parts=())

_GATED_Q = f"{Q} + {Q}"

#: Attention that has a gate for each query: Qwen3-Next and Qwen3.5.
GATED_ATTENTION: Block = (
    column(
        "self_attn.qkv_proj",
        *(_GATED_Q, KV, KV),
        parts=_QKV,
        where="full_attention",
        if_given="attn_output_gate",
    ),
    column(
        "self_attn.qkv_proj",
        *(Q, KV, KV),
        parts=_QKV,
        where="full_attention",
        if_absent="attn_output_gate",
    ),
    row("self_attn.o_proj", Q, where="full_attention"),
)

_LATENT_KV = "kv_lora_rank + qk_rope_head_dim"
_LATENT_Q = "num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim"

#: The attention backend uses the layer beneath vLLM's LoRA wrapper, and folds its weight into the
#: queries when decoding, so that the wrapper never launches a kernel.
_KV_B = column(
    "self_attn.kv_b_proj",
    "num_attention_heads * qk_nope_head_dim + num_attention_heads * v_head_dim",
    reads="kv_lora_rank",
    computed=False,
)
_LATENT_O = row("self_attn.o_proj", "num_attention_heads * v_head_dim")

#: Multi-head latent attention. With a ``q_lora_rank`` the queries are compressed, too.
LATENT_ATTENTION: Block = (
    replicated(
        "self_attn.fused_qkv_a_proj",
        *("q_lora_rank", _LATENT_KV),
        parts=("q_a_proj", "kv_a_proj_with_mqa"),
        if_given="q_lora_rank",
    ),
    column("self_attn.q_b_proj", _LATENT_Q, reads="q_lora_rank", if_given="q_lora_rank"),
    replicated("self_attn.kv_a_proj_with_mqa", _LATENT_KV, if_absent="q_lora_rank"),
    column("self_attn.q_proj", _LATENT_Q, if_absent="q_lora_rank"),
    _KV_B,
    _LATENT_O,
)

#: The same, in a model that computes attention as it stands, without folding: MiniCPM 3.
PLAIN_LATENT_ATTENTION: Block = (
    replicated("self_attn.q_a_proj", "q_lora_rank"),
    column("self_attn.q_b_proj", _LATENT_Q, reads="q_lora_rank"),
    replicated("self_attn.kv_a_proj_with_mqa", _LATENT_KV),
    replace(_KV_B, computed=True),
    _LATENT_O,
)

#: What chooses the tokens that sparse attention looks at: DeepSeek V3.2 and GLM 5.
INDEXER = replicated(
    "self_attn.indexer.wq_b",
    "index_n_heads * index_head_dim",
    reads="q_lora_rank",
    where="index",
)

# --------------------------------------------------------------------------- feed forward


def mlp(
    name: str = "mlp",
    size: str = "intermediate_size",
    *,
    up: str = "gate_up_proj",
    down: str = "down_proj",
    parts: tuple[str, ...] = ("gate_proj", "up_proj"),
    **more: Any,  # noqa: ANN401 - fields of Module
) -> Block:
    """A gated feed-forward block, with gate and up as the slices of one module.

    Args:
        name: The path of the block below a decoder layer.
        size: What gate and up write each, a formula.
        up: What vLLM calls the module that writes both.
        down: What it calls the one that reads their product.
        parts: What adapters call gate and up; empty where checkpoints have both in one tensor.
        more: Fields of both modules.
    """
    writes = (size, size) if parts else (f"{size} + {size}",)
    return (
        column(f"{name}.{up}", *writes, parts=parts, **more),
        row(f"{name}.{down}", size, **more),
    )


MLP = mlp()
MLP_IN_ONE = mlp(parts=())


def ungated_mlp(
    name: str = "mlp",
    size: str = "intermediate_size",
    *,
    up: str = "up_proj",
    down: str = "down_proj",
    **more: Any,  # noqa: ANN401 - fields of Module
) -> Block:
    """A feed-forward block without a gate; names as in ``mlp``."""
    return (column(f"{name}.{up}", size, **more), row(f"{name}.{down}", size, **more))


# --------------------------------------------------------------------------- vocabulary

EMBEDDING = Module(
    name="embed_tokens", split=Split.EMBEDDING, writes=("hidden_size",), where=OUTSIDE
)
LOGITS = Module(
    name="lm_head",
    split=Split.LOGITS,
    reads="hidden_size",
    writes=("vocab_size",),
    where=OUTSIDE,
)
VOCABULARY: Block = (EMBEDDING, LOGITS)

#: For models whose class does not list them in ``embedding_modules``.
EMBEDDING_IF_NAMED = replace(EMBEDDING, only_if_named=True)
LOGITS_IF_NAMED = replace(LOGITS, only_if_named=True)
VOCABULARY_IF_NAMED: Block = (EMBEDDING_IF_NAMED, LOGITS_IF_NAMED)

#: Of models that vLLM runs through their code in ``transformers``.
VOCABULARY_OF_BACKEND: Block = (EMBEDDING, LOGITS_IF_NAMED)
