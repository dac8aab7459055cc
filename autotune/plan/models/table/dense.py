"""Language models without experts, or with all of their layers alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autotune.plan.models.modules import Architecture
from autotune.plan.models.table.blocks import (
    ATTENTION,
    ATTENTION_IN_ONE,
    EMBEDDING,
    EMBEDDING_IF_NAMED,
    MLP,
    MLP_IN_ONE,
    PLAIN_LATENT_ATTENTION,
    VOCABULARY,
    VOCABULARY_IF_NAMED,
    VOCABULARY_OF_BACKEND,
    Q,
    attention,
    column,
    mlp,
    row,
    ungated_mlp,
)
from autotune.plan.models.table.gemma_4 import GEMMA_4

_LLAMA = Architecture(modules=(*ATTENTION, *MLP, *VOCABULARY))

#: Llama's modules, with LoRA on embedding and logits only where they are asked for.
_MISTRAL = Architecture(modules=(*ATTENTION, *MLP, *VOCABULARY_IF_NAMED))

#: Llama's, which vLLM runs through their code in ``transformers`` and packs alike.
_OLMO = Architecture(modules=(*ATTENTION, *MLP, *VOCABULARY_OF_BACKEND))
_ARCEE = Architecture(modules=(*ATTENTION, *ungated_mlp(), *VOCABULARY_OF_BACKEND))

_NEMOTRON = Architecture(modules=(*ATTENTION, *ungated_mlp(), *VOCABULARY))

#: No logits: vLLM computes them by the embedding's weight, without a module of their own.
_COHERE = Architecture(modules=(*ATTENTION, *MLP, EMBEDDING))
_GEMMA = Architecture(modules=(*ATTENTION, *MLP, EMBEDDING_IF_NAMED), defaults={"head_dim": 256})
_GEMMA_2 = replace(
    _GEMMA, defaults={"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
)

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

#: Checkpoints of these have q, k and v in one tensor, and gate and up.
_PHI_3 = Architecture(modules=(*ATTENTION_IN_ONE, *MLP_IN_ONE, *VOCABULARY))
_PLAMO_3 = Architecture(
    modules=(
        *attention("mixer", parts=()),
        *MLP_IN_ONE,
        *VOCABULARY_IF_NAMED,
    ),
    above="model.layers.",
)
_GLM = Architecture(modules=(*ATTENTION, *MLP_IN_ONE, *VOCABULARY_OF_BACKEND))

_PHI = Architecture(
    modules=(
        *attention(out="dense"),
        *ungated_mlp(up="fc1", down="fc2"),
        *VOCABULARY_OF_BACKEND,
    )
)
_STARCODER_2 = Architecture(
    modules=(*ATTENTION, *ungated_mlp(up="c_fc", down="c_proj"), *VOCABULARY_OF_BACKEND)
)
_GPT_NEOX = Architecture(
    modules=(
        column("attention.query_key_value", f"{Q} + {Q} + {Q}"),
        row("attention.dense", Q),
        *ungated_mlp(up="dense_h_to_4h", down="dense_4h_to_h"),
    ),
    spelled=("gpt_neox.",),
)
_OPT = Architecture(
    modules=(
        *attention(out="out_proj", kv=Q),
        column("fc1", "ffn_dim"),
        row("fc2", "ffn_dim"),
    ),
    alike={"word_embed_proj_dim": "hidden_size"},
    above="model.decoder.",
)
_CHAT_GLM = Architecture(
    modules=(
        column(
            "self_attention.query_key_value",
            "num_attention_heads * kv_channels + num_key_value_heads * kv_channels"
            " + num_key_value_heads * kv_channels",
        ),
        row("self_attention.dense", "num_attention_heads * kv_channels"),
        column("mlp.dense_h_to_4h", "ffn_hidden_size + ffn_hidden_size"),
        row("mlp.dense_4h_to_h", "ffn_hidden_size"),
    ),
    defaults={"num_hidden_layers": "num_layers", "num_key_value_heads": "multi_query_group_num"},
    above="transformer.encoder.",
)
_INTERNLM_2 = Architecture(
    modules=(
        *attention("attention", qkv="wqkv", out="wo", parts=()),
        *mlp("feed_forward", down="w2", parts=("w1", "w3")),
        replace(EMBEDDING_IF_NAMED, name="tok_embeddings"),
    )
)
_EXAONE = Architecture(
    modules=(
        *attention("attn.attention", out="out_proj"),
        *mlp(down="c_proj", parts=("c_fc_0", "c_fc_1")),
        replace(EMBEDDING, name="wte"),
        VOCABULARY[1],
    ),
    defaults={"num_hidden_layers": "num_layers"},
    above="transformer.",
)

_MINICPM_3 = Architecture(modules=(*PLAIN_LATENT_ATTENTION, *MLP, *VOCABULARY))

#: By the first name in a config's ``architectures``.
DENSE_MODELS: Mapping[str, Architecture] = {
    "ApertusForCausalLM": _NEMOTRON,
    "ArceeForCausalLM": _ARCEE,
    "ChatGLMForConditionalGeneration": _CHAT_GLM,
    "ChatGLMModel": _CHAT_GLM,
    "Cohere2ForCausalLM": _COHERE,
    "CohereForCausalLM": _COHERE,
    "CwmForCausalLM": _OLMO,
    "Ernie4_5ForCausalLM": _LLAMA,
    "Exaone4ForCausalLM": _LLAMA,
    "ExaoneForCausalLM": _EXAONE,
    "GPTNeoXForCausalLM": _GPT_NEOX,
    "Gemma2ForCausalLM": _GEMMA_2,
    "Gemma3ForCausalLM": _GEMMA_3,
    "Gemma4ForCausalLM": GEMMA_4,
    "GemmaForCausalLM": _GEMMA,
    "Glm4ForCausalLM": _MISTRAL,
    "GlmForCausalLM": _GLM,
    "GraniteForCausalLM": _LLAMA,
    "GraniteSWAForCausalLM": _LLAMA,
    "HunYuanDenseV1ForCausalLM": _OLMO,
    "HyperCLOVAXForCausalLM": _LLAMA,
    "IQuestCoderForCausalLM": _LLAMA,
    "InternLM2ForCausalLM": _INTERNLM_2,
    "InternLM3ForCausalLM": _LLAMA,
    "Jais2ForCausalLM": _ARCEE,
    "LLaMAForCausalLM": _LLAMA,
    "LlamaForCausalLM": _LLAMA,
    "MiMoForCausalLM": _MISTRAL,
    "MiniCPM3ForCausalLM": _MINICPM_3,
    "MiniCPMForCausalLM": _LLAMA,
    "Ministral3ForCausalLM": _MISTRAL,
    "MistralForCausalLM": _MISTRAL,
    "NemotronForCausalLM": _NEMOTRON,
    "OPTForCausalLM": _OPT,
    "Olmo2ForCausalLM": _OLMO,
    "Olmo3ForCausalLM": _OLMO,
    "OlmoForCausalLM": _OLMO,
    "PanguEmbeddedForCausalLM": _MISTRAL,
    "Phi3ForCausalLM": _PHI_3,
    "PhiForCausalLM": _PHI,
    "Plamo3ForCausalLM": _PLAMO_3,
    "Qwen2ForCausalLM": _MISTRAL,
    "Qwen3ForCausalLM": _LLAMA,
    "Rnj1ForCausalLM": _MISTRAL,
    "SeedOssForCausalLM": _OLMO,
    "SmolLM3ForCausalLM": _OLMO,
    "SolarForCausalLM": _LLAMA,
    "Starcoder2ForCausalLM": _STARCODER_2,
    "TeleChat2ForCausalLM": _LLAMA,
    "TeleChat3ForCausalLM": _LLAMA,
    "TeleFLMForCausalLM": _LLAMA,
    "VaultGemmaForCausalLM": replace(_OLMO, defaults=_GEMMA_2.defaults),
}
