"""The table of architectures: which modules vLLM gives LoRA, and how large they are.

To add one, write its modules down and give it a line in ``ARCHITECTURES``. A size is a formula
over the fields of ``config.json``: a sum of products, such as ``num_attention_heads * head_dim``.
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

from collections.abc import Mapping
from dataclasses import replace

from autotune.plan.models.modules import Architecture, Module, Split, Where
from autotune.plan.models.sparse import after_the_first, by_step, every, interleaved

# --------------------------------------------------------------------------- attention

_Q = "num_attention_heads * head_dim"
_KV = "num_key_value_heads * head_dim"

_O = Module(name="self_attn.o_proj", split=Split.ROW, reads=_Q, writes=("hidden_size",))

_ATTENTION = (
    Module(
        name="self_attn.qkv_proj",
        split=Split.COLUMN,
        reads="hidden_size",
        writes=(_Q, _KV, _KV),
        parts=("q_proj", "k_proj", "v_proj"),
    ),
    _O,
)

#: Phi's checkpoints have q, k and v in one tensor, so that an adapter has one A and one B for all.
_ATTENTION_IN_ONE = (
    Module(
        name="self_attn.qkv_proj",
        split=Split.COLUMN,
        reads="hidden_size",
        writes=(f"{_Q} + {_KV} + {_KV}",),
    ),
    _O,
)

_LATENT_KV = "kv_lora_rank + qk_rope_head_dim"
_LATENT_Q = "num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim"

#: Multi-head latent attention. With a ``q_lora_rank`` the queries are compressed, too.
_LATENT_ATTENTION = (
    Module(
        name="self_attn.fused_qkv_a_proj",
        split=Split.REPLICATED,
        reads="hidden_size",
        writes=("q_lora_rank", _LATENT_KV),
        parts=("q_a_proj", "kv_a_proj_with_mqa"),
        if_given="q_lora_rank",
    ),
    Module(
        name="self_attn.q_b_proj",
        split=Split.COLUMN,
        reads="q_lora_rank",
        writes=(_LATENT_Q,),
        if_given="q_lora_rank",
    ),
    Module(
        name="self_attn.kv_a_proj_with_mqa",
        split=Split.REPLICATED,
        reads="hidden_size",
        writes=(_LATENT_KV,),
        if_absent="q_lora_rank",
    ),
    Module(
        name="self_attn.q_proj",
        split=Split.COLUMN,
        reads="hidden_size",
        writes=(_LATENT_Q,),
        if_absent="q_lora_rank",
    ),
    Module(
        name="self_attn.kv_b_proj",
        split=Split.COLUMN,
        reads="kv_lora_rank",
        writes=("num_attention_heads * qk_nope_head_dim + num_attention_heads * v_head_dim",),
        # The attention backend uses the layer beneath vLLM's LoRA wrapper, and folds its weight
        # into the queries when decoding, so that the wrapper never launches a kernel.
        computed=False,
    ),
    Module(
        name="self_attn.o_proj",
        split=Split.ROW,
        reads="num_attention_heads * v_head_dim",
        writes=("hidden_size",),
    ),
)

# --------------------------------------------------------------------------- feed forward


def _mlp(
    name: str, size: str, *, where: Where = Where.ALL, if_given: str = ""
) -> tuple[Module, Module]:
    """A gated feed-forward block, with gate and up as the slices of one module."""
    gate_up = Module(
        name=f"{name}.gate_up_proj",
        split=Split.COLUMN,
        reads="hidden_size",
        writes=(size, size),
        parts=("gate_proj", "up_proj"),
        where=where,
        if_given=if_given,
    )
    down = Module(
        name=f"{name}.down_proj",
        split=Split.ROW,
        reads=size,
        writes=("hidden_size",),
        where=where,
        if_given=if_given,
    )
    return gate_up, down


_MLP = _mlp("mlp", "intermediate_size")

#: Phi's feed-forward block, with gate and up in one tensor.
_MLP_IN_ONE = (
    replace(_MLP[0], writes=("intermediate_size + intermediate_size",), parts=()),
    _MLP[1],
)


def _router(name: str, writes: str, *, if_given: str = "") -> Module:
    """The linear layer that chooses the experts; every GPU has all of it."""
    return Module(
        name=name,
        split=Split.REPLICATED,
        reads="hidden_size",
        writes=(writes,),
        where=Where.SPARSE,
        if_given=if_given,
    )


def _experts(
    name: str,
    size: str,
    number: str,
    *,
    parts: tuple[str, ...] = ("0.gate_proj", "0.up_proj", "0.down_proj"),
) -> Module:
    """A fused mixture of experts, with gate and up as two slices of w13.

    Args:
        name: The module's name.
        size: What gate and up write each, a formula.
        number: How many experts there are, a formula.
        parts: What adapters call the layers of an expert.
    """
    return Module(
        name=name,
        split=Split.EXPERTS,
        reads="hidden_size",
        writes=(size, size),
        # New checkpoints have one parameter for all experts' gate and up and one for all their
        # down, which an adapter may name.
        parts=(*parts, "gate_up_proj", "down_proj"),
        where=Where.SPARSE,
        number=number,
        top_k="num_experts_per_tok",
    )


def _fused_experts(name: str, size: str, number: str) -> Module:
    """Experts whose adapters have gate and up in one tensor (``is_3d_moe_weight``): one slice."""
    experts = _experts(name, size, number, parts=())
    return replace(experts, writes=(f"{size} + {size}",), is_linear=False)


# --------------------------------------------------------------------------- vocabulary

_EMBEDDING = Module(
    name="embed_tokens", split=Split.EMBEDDING, writes=("hidden_size",), where=Where.OUTSIDE
)
_LOGITS = Module(
    name="lm_head",
    split=Split.LOGITS,
    reads="hidden_size",
    writes=("vocab_size",),
    where=Where.OUTSIDE,
)
_VOCABULARY = (_EMBEDDING, _LOGITS)

#: For models whose class does not list them in ``embedding_modules``.
_EMBEDDING_IF_NAMED = replace(_EMBEDDING, only_if_named=True)
_LOGITS_IF_NAMED = replace(_LOGITS, only_if_named=True)
_VOCABULARY_IF_NAMED = (_EMBEDDING_IF_NAMED, _LOGITS_IF_NAMED)

# --------------------------------------------------------------------------- the table

_LLAMA = Architecture(modules=(*_ATTENTION, *_MLP, *_VOCABULARY))

#: Llama's modules, with LoRA on embedding and logits only where they are asked for.
_MISTRAL = Architecture(modules=(*_ATTENTION, *_MLP, *_VOCABULARY_IF_NAMED))

_PHI = Architecture(modules=(*_ATTENTION_IN_ONE, *_MLP_IN_ONE, *_VOCABULARY))

#: No logits: vLLM computes them by the embedding's weight, without a module of their own.
_GEMMA_2 = Architecture(
    modules=(*_ATTENTION, *_MLP, _EMBEDDING_IF_NAMED),
    defaults={"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
)

#: The modules beside the language model in models of several media, whatever is in them.
_OUTSIDE = frozenset({"vision_tower", "vision_model", "vision_adapter", "multi_modal_projector"})

#: Published configs of the multimodal models leave out heads and vocabulary.
_GEMMA_3 = Architecture(
    modules=_MISTRAL.modules,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
    },
)
_GEMMA_3_WITH_IMAGES = replace(
    _GEMMA_3,
    text_types=("gemma3_text",),
    tower=_OUTSIDE | {"out_proj", "fc1", "fc2"},
)

_MISTRAL_3 = replace(
    _MISTRAL,
    text_types=("mistral", "ministral3"),
    tower=_OUTSIDE | {"linear_1", "linear_2", "merging_layer"},
)

#: vLLM runs it through the model's code in ``transformers``, and packs modules as in Llama.
_OLMO = Architecture(modules=(*_ATTENTION, *_MLP, _EMBEDDING, _LOGITS_IF_NAMED))

_MIXTRAL = Architecture(
    modules=(
        *_ATTENTION,
        _router("block_sparse_moe.gate", "num_local_experts"),
        _experts(
            "block_sparse_moe.experts",
            "intermediate_size",
            "num_local_experts",
            parts=("0.w1", "0.w3", "0.w2"),
        ),
        *_VOCABULARY,
    ),
    is_sparse=every,
)

_QWEN_MOE = (
    *_ATTENTION,
    *_mlp("mlp", "intermediate_size", where=Where.DENSE),
    _router("mlp.gate", "num_experts"),
    _router("mlp.shared_expert_gate", "1", if_given="shared_expert_intermediate_size"),
    *_mlp(
        "mlp.shared_expert",
        "shared_expert_intermediate_size",
        where=Where.SPARSE,
        if_given="shared_expert_intermediate_size",
    ),
    _experts("mlp.experts", "moe_intermediate_size", "num_experts"),
)
_QWEN_2_MOE = Architecture(modules=(*_QWEN_MOE, *_VOCABULARY_IF_NAMED), is_sparse=by_step)
_QWEN_3_MOE = Architecture(modules=(*_QWEN_MOE, *_VOCABULARY), is_sparse=by_step)

_DEEPSEEK = Architecture(
    modules=(
        *_LATENT_ATTENTION,
        *_mlp("mlp", "intermediate_size", where=Where.DENSE),
        _router("mlp.gate", "n_routed_experts"),
        *_mlp(
            "mlp.shared_experts",
            "moe_intermediate_size * n_shared_experts",
            where=Where.SPARSE,
            if_given="n_shared_experts",
        ),
        _experts("mlp.experts", "moe_intermediate_size", "n_routed_experts"),
        *_VOCABULARY_IF_NAMED,
    ),
    is_sparse=after_the_first,
)

_GPT_OSS = Architecture(
    modules=(
        *_ATTENTION,
        replace(_router("mlp.router", "num_local_experts"), is_linear=False),
        _fused_experts("mlp.experts", "intermediate_size", "num_local_experts"),
        replace(_EMBEDDING_IF_NAMED, name="embedding", parts=("embed_tokens",)),
        _LOGITS_IF_NAMED,
    ),
    is_sparse=every,
)

_LLAMA_4 = Architecture(
    modules=(
        *_ATTENTION,
        *_mlp("feed_forward", "intermediate_size_mlp", where=Where.DENSE),
        _router("feed_forward.router", "num_local_experts"),
        *_mlp("feed_forward.shared_expert", "intermediate_size", where=Where.SPARSE),
        _experts("feed_forward.experts", "intermediate_size", "num_local_experts"),
        *_VOCABULARY,
    ),
    is_sparse=interleaved,
)

_LLAMA_4_WITH_IMAGES = replace(
    _LLAMA_4,
    text_types=("llama4_text",),
    tower=_OUTSIDE | {"fc1", "fc2", "linear_1", "linear"},
)

#: The table, by the first name in a config's ``architectures``.
ARCHITECTURES: Mapping[str, Architecture] = {
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Gemma2ForCausalLM": _GEMMA_2,
    "Gemma3ForCausalLM": _GEMMA_3,
    "Gemma3ForConditionalGeneration": _GEMMA_3_WITH_IMAGES,
    "GptOssForCausalLM": _GPT_OSS,
    "GraniteForCausalLM": _LLAMA,
    "GraniteMoeForCausalLM": _MIXTRAL,
    "Llama4ForCausalLM": _LLAMA_4,
    "Llama4ForConditionalGeneration": _LLAMA_4_WITH_IMAGES,
    "LlamaForCausalLM": _LLAMA,
    "Mistral3ForConditionalGeneration": _MISTRAL_3,
    "MistralForCausalLM": _MISTRAL,
    "MixtralForCausalLM": _MIXTRAL,
    "Olmo2ForCausalLM": _OLMO,
    "Phi3ForCausalLM": _PHI,
    "Qwen2ForCausalLM": _MISTRAL,
    "Qwen2MoeForCausalLM": _QWEN_2_MOE,
    "Qwen3ForCausalLM": _LLAMA,
    "Qwen3MoeForCausalLM": _QWEN_3_MOE,
}
