"""Language models of mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autotune.plan.models.modules import DENSE, SPARSE, Architecture
from autotune.plan.models.table.blocks import (
    ATTENTION,
    EMBEDDING_IF_NAMED,
    GATED_ATTENTION,
    INDEXER,
    LATENT_ATTENTION,
    LOGITS_IF_NAMED,
    MLP,
    VOCABULARY,
    VOCABULARY_IF_NAMED,
    VOCABULARY_OF_BACKEND,
    Q,
    attention,
    column,
    mlp,
    row,
)
from autotune.plan.models.table.experts import (
    BLOCK_SPARSE,
    GRANITE_EXPERTS,
    QWEN_2_EXPERTS,
    QWEN_EXPERTS,
    deepseek_experts,
    experts,
    fused,
    handed_router,
    router,
)
from autotune.plan.models.table.layer_kinds import (
    after_the_first,
    attention_kinds,
    by_step,
    every,
    from_start_to_end,
    interleaved,
    with_index,
)
from autotune.plan.models.table.recurrent import DELTA_RULE, DELTA_RULE_IN_ONE

_MIXTRAL = Architecture(modules=(*ATTENTION, *BLOCK_SPARSE, *VOCABULARY), kinds=(every,))
_MINIMAX_M2 = replace(_MIXTRAL, modules=(*ATTENTION, *BLOCK_SPARSE, *VOCABULARY_IF_NAMED))
_GRANITE = replace(_MIXTRAL, modules=(*ATTENTION, *GRANITE_EXPERTS, *VOCABULARY))
#: The shared expert's first module is packed, but the class does not say so: vLLM gives it none.
_GRANITE_SHARED = replace(
    _MIXTRAL,
    modules=(
        *ATTENTION,
        *GRANITE_EXPERTS,
        row(
            "shared_mlp.output_linear",
            "shared_intermediate_size",
            if_given="shared_intermediate_size",
        ),
        *VOCABULARY,
    ),
)

_OLMOE_EXPERTS = (
    router("mlp.gate", "num_experts"),
    experts(size="intermediate_size"),
)
_OLMOE = Architecture(modules=(*ATTENTION, *_OLMOE_EXPERTS, *VOCABULARY_IF_NAMED), kinds=(every,))
_FLEX_OLMO = replace(_OLMOE, modules=(*ATTENTION, *_OLMOE_EXPERTS, *VOCABULARY_OF_BACKEND))

_MELLUM = replace(
    _OLMOE,
    modules=(
        *ATTENTION,
        handed_router("mlp.experts.gate", "num_experts"),
        experts(),
        *VOCABULARY_OF_BACKEND,
    ),
)

_QWEN_2_MOE = Architecture(
    modules=(*ATTENTION, *mlp(where=DENSE), *QWEN_2_EXPERTS, *VOCABULARY_IF_NAMED),
    kinds=(by_step,),
)
_QWEN_3_MOE = replace(
    _QWEN_2_MOE, modules=(*ATTENTION, *mlp(where=DENSE), *QWEN_EXPERTS, *VOCABULARY)
)

_LINEAR_OR_FULL = attention_kinds(
    "linear_attention", "full_attention", interval="full_attention_interval"
)
_QWEN_3_NEXT = Architecture(
    modules=(
        *DELTA_RULE_IN_ONE,
        *GATED_ATTENTION,
        *mlp(where=DENSE),
        *QWEN_EXPERTS,
        *VOCABULARY_IF_NAMED,
    ),
    kinds=(by_step, _LINEAR_OR_FULL),
    defaults={"attn_output_gate": 1},
)
_QWEN_3_5 = Architecture(
    modules=(*DELTA_RULE, *GATED_ATTENTION, *MLP, *VOCABULARY),
    kinds=(_LINEAR_OR_FULL,),
    defaults={"attn_output_gate": 1},
)
_QWEN_3_5_MOE = replace(
    _QWEN_3_5,
    modules=(*DELTA_RULE, *GATED_ATTENTION, *QWEN_EXPERTS, *VOCABULARY),
    kinds=(every, _LINEAR_OR_FULL),
)


_DEEPSEEK_EXPERTS = deepseek_experts(is_handed=True)
_DEEPSEEK = Architecture(
    modules=(*LATENT_ATTENTION, *_DEEPSEEK_EXPERTS, *VOCABULARY_IF_NAMED),
    kinds=(after_the_first(),),
)
_DEEPSEEK_1 = replace(_DEEPSEEK, modules=(*ATTENTION, *_DEEPSEEK_EXPERTS, *VOCABULARY_IF_NAMED))
_DEEPSEEK_3_2 = Architecture(
    modules=(*LATENT_ATTENTION, INDEXER, *_DEEPSEEK_EXPERTS, *VOCABULARY_IF_NAMED),
    kinds=(after_the_first(), with_index),
)
_GLM_4_MOE = Architecture(
    modules=(*ATTENTION, *deepseek_experts(), *VOCABULARY_IF_NAMED),
    kinds=(after_the_first(step=""),),
)
_GLM_4_MOE_LITE = replace(
    _DEEPSEEK, modules=(*LATENT_ATTENTION, *deepseek_experts(), *VOCABULARY_IF_NAMED)
)
_EXAONE_MOE = Architecture(
    modules=(
        *ATTENTION,
        *deepseek_experts("num_experts", "num_shared_experts", is_handed=True),
        *VOCABULARY,
    ),
    kinds=(after_the_first(number="num_experts", step="", is_listed=True),),
)
_AFMOE = Architecture(
    modules=(
        *ATTENTION,
        column("self_attn.gate_proj", Q),
        *deepseek_experts("num_experts", "num_shared_experts"),
        *VOCABULARY_IF_NAMED,
    ),
    kinds=(after_the_first("num_dense_layers", step="", number="num_experts"),),
)
_HY_3 = Architecture(
    modules=(
        *ATTENTION,
        *mlp(where=DENSE),
        router("mlp.gate", "num_experts"),
        *mlp(
            "mlp.shared_mlp",
            "expert_hidden_dim * num_shared_experts",
            where=SPARSE,
            if_given="num_shared_experts",
        ),
        experts(size="expert_hidden_dim"),
        *VOCABULARY_IF_NAMED,
    ),
    kinds=(after_the_first(step="", number="num_experts"),),
)
_BAILING = Architecture(
    modules=(
        *attention("attention", qkv="query_key_value", out="dense", parts=()),
        *deepseek_experts(
            "num_experts",
            "num_shared_experts",
            size="moe_shared_expert_intermediate_size * num_shared_experts",
        ),
        replace(EMBEDDING_IF_NAMED, name="word_embeddings"),
        LOGITS_IF_NAMED,
    ),
    kinds=(after_the_first(step="", number="num_experts"),),
    defaults={"moe_shared_expert_intermediate_size": "moe_intermediate_size"},
)
_ERNIE_MOE = Architecture(
    modules=(
        *ATTENTION,
        *deepseek_experts("moe_num_experts", "moe_num_shared_experts", top_k="moe_k"),
        *VOCABULARY_IF_NAMED,
    ),
    kinds=(from_start_to_end,),
)

_GPT_OSS = Architecture(
    modules=(
        *ATTENTION,
        router("mlp.router", "num_local_experts", is_linear=False),
        fused(experts(size="intermediate_size", number="num_local_experts")),
        replace(EMBEDDING_IF_NAMED, name="embedding", parts=("embed_tokens",)),
        LOGITS_IF_NAMED,
    ),
    kinds=(every,),
)

_LLAMA_4 = Architecture(
    modules=(
        *ATTENTION,
        *mlp("feed_forward", "intermediate_size_mlp", where=DENSE),
        router("feed_forward.router", "num_local_experts"),
        *mlp("feed_forward.shared_expert", where=SPARSE),
        experts("feed_forward.experts", "intermediate_size", "num_local_experts"),
        *VOCABULARY,
    ),
    kinds=(interleaved,),
)

#: By the first name in a config's ``architectures``.
SPARSE_MODELS: Mapping[str, Architecture] = {
    "AXK1ForCausalLM": replace(_DEEPSEEK, kinds=(after_the_first(is_listed=True),)),
    "AfmoeForCausalLM": _AFMOE,
    "BailingMoeForCausalLM": _BAILING,
    "BailingMoeV2ForCausalLM": _BAILING,
    "DeepseekForCausalLM": _DEEPSEEK_1,
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK_3_2,
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Ernie4_5_MoeForCausalLM": _ERNIE_MOE,
    "ExaoneMoEForCausalLM": _EXAONE_MOE,
    "ExaoneMoeForCausalLM": _EXAONE_MOE,
    "FlexOlmoForCausalLM": _FLEX_OLMO,
    "Glm4MoeForCausalLM": _GLM_4_MOE,
    "Glm4MoeLiteForCausalLM": _GLM_4_MOE_LITE,
    "GlmMoeDsaForCausalLM": _DEEPSEEK_3_2,
    "GptOssForCausalLM": _GPT_OSS,
    "GraniteMoeForCausalLM": _GRANITE,
    "GraniteMoeSWAForCausalLM": _GRANITE_SHARED,
    "GraniteMoeSharedForCausalLM": _GRANITE_SHARED,
    "HYV3ForCausalLM": _HY_3,
    "Llama4ForCausalLM": _LLAMA_4,
    "MellumForCausalLM": _MELLUM,
    "MiniMaxM2ForCausalLM": _MINIMAX_M2,
    "MistralLarge3ForCausalLM": _DEEPSEEK,
    "MixtralForCausalLM": _MIXTRAL,
    "OlmoeForCausalLM": _OLMOE,
    "PhiMoEForCausalLM": _MIXTRAL,
    "Qwen2MoeForCausalLM": _QWEN_2_MOE,
    "Qwen3MoeForCausalLM": _QWEN_3_MOE,
    "Qwen3NextForCausalLM": _QWEN_3_NEXT,
    "Qwen3_5ForCausalLM": _QWEN_3_5,
    "Qwen3_5MoeForCausalLM": _QWEN_3_5_MOE,
    "SarvamMoEForCausalLM": _BAILING,
}
