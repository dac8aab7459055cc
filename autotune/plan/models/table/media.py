"""The table of models of several media: which language models they have, and where.

vLLM makes the language model of its own class or of any that it has a class for, by the
``model_type`` of its config.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from autotune.plan.models.modules import Architecture, Wrapper
from autotune.plan.models.table.dense import DENSE_MODELS
from autotune.plan.models.table.experts import with_fused_experts
from autotune.plan.models.table.hybrid import HYBRID_MODELS
from autotune.plan.models.table.sparse import SPARSE_MODELS

#: All language models.
_TEXT: Mapping[str, Architecture] = {**DENSE_MODELS, **SPARSE_MODELS, **HYBRID_MODELS}

#: Language models that vLLM makes inside of wrappers by the ``model_type`` of their config.
_BY_TYPE: Mapping[str, Architecture] = {
    "llama": _TEXT["LlamaForCausalLM"],
    "mistral": _TEXT["MistralForCausalLM"],
    "ministral3": _TEXT["Ministral3ForCausalLM"],
    "mixtral": _TEXT["MixtralForCausalLM"],
    "qwen2": _TEXT["Qwen2ForCausalLM"],
    "qwen3": _TEXT["Qwen3ForCausalLM"],
    "qwen3_moe": _TEXT["Qwen3MoeForCausalLM"],
    "gemma": _TEXT["GemmaForCausalLM"],
    "gemma2": _TEXT["Gemma2ForCausalLM"],
    "gemma3_text": _TEXT["Gemma3ForCausalLM"],
    "granite": _TEXT["GraniteForCausalLM"],
    "granitemoehybrid": _TEXT["GraniteMoeHybridForCausalLM"],
    "gpt_oss": _TEXT["GptOssForCausalLM"],
    "internlm2": _TEXT["InternLM2ForCausalLM"],
    "nemotron_h": _TEXT["NemotronHForCausalLM"],
    "phi3": _TEXT["Phi3ForCausalLM"],
}


#: Those that are packed as Llama is, which wrappers with a ``packed_modules_mapping`` say of all.
_AS_LLAMA = (
    *("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    "granite",
)


def _any(first: str, among: Collection[str] = tuple(_BY_TYPE), **more: object) -> Wrapper:
    """A wrapper around several language models; around the first where its config does not say."""
    texts = {kind: _BY_TYPE[kind] for kind in (first, *among)}
    return Wrapper(texts=texts, **more)  # type: ignore[arg-type]


def _of(*texts: str, types: tuple[str, ...], **more: object) -> Wrapper:
    """A wrapper around one language model, whatever of these types its config says."""
    (name,) = texts
    return Wrapper(texts=dict.fromkeys(types, _TEXT[name]), **more)  # type: ignore[arg-type]


_IDEFICS = Wrapper(
    texts=dict.fromkeys(("llama", "vllama3"), _TEXT["MistralForCausalLM"]),
    above="model.text_model.",
    above_logits="",
    spelled=("model.text_model.",),
)
#: The class says that gate and up are one tensor in dense layers.
_GLM_4_DENSE = replace(_TEXT["GlmForCausalLM"], modules=(*_TEXT["GlmForCausalLM"].modules[:4],))

_QWEN_3_VL = _of("Qwen3ForCausalLM", types=("qwen3_vl_text", "qwen3"))
_QWEN_3_MOE = with_fused_experts(_TEXT["Qwen3MoeForCausalLM"])
#: The class does not say that dense layers pack gate and up: vLLM gives them no LoRA.
_QWEN_3_VL_MOE = Wrapper(
    texts=dict.fromkeys(
        ("qwen3_vl_moe_text", "qwen3_moe"),
        replace(
            _QWEN_3_MOE,
            modules=tuple(each for each in _QWEN_3_MOE.modules if "gate_up" not in each.name),
        ),
    )
)
_QWEN_3_5 = _of("Qwen3_5ForCausalLM", types=("qwen3_5_text", "qwen3_5"))
_QWEN_3_5_MOE = Wrapper(
    texts=dict.fromkeys(
        ("qwen3_5_moe_text", "qwen3_5_moe"), with_fused_experts(_TEXT["Qwen3_5MoeForCausalLM"])
    )
)
_QWEN_2_VL = _of(
    "Qwen2ForCausalLM",
    types=("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl", "qwen2"),
)

#: The table of models of several media, by the first name in a config's ``architectures``.
MEDIA: Mapping[str, Wrapper] = {
    "AudioFlamingo3ForConditionalGeneration": _any("qwen2", _AS_LLAMA),
    "Blip2ForConditionalGeneration": _of(
        "OPTForCausalLM",
        types=("opt",),
        above="language_model.model.decoder.",
        spelled=("language_model.model.decoder.", "model.decoder."),
    ),
    "Exaone4_5_ForConditionalGeneration": _of(
        "Exaone4ForCausalLM", types=("exaone4", "exaone4_5_text")
    ),
    "Gemma3ForConditionalGeneration": _of("Gemma3ForCausalLM", types=("gemma3_text",)),
    "Gemma4ForConditionalGeneration": _of("Gemma4ForCausalLM", types=("gemma4_text",)),
    "Glm4vForConditionalGeneration": Wrapper(
        texts=dict.fromkeys(("glm4v_text", "glm4v"), _GLM_4_DENSE)
    ),
    "GlmOcrForConditionalGeneration": Wrapper(
        texts=dict.fromkeys(("glm_ocr_text", "glm_ocr"), _GLM_4_DENSE)
    ),
    "Glm4vMoeForConditionalGeneration": _of(
        "Glm4MoeForCausalLM", types=("glm4v_moe_text", "glm4v_moe")
    ),
    "GlmAsrForConditionalGeneration": _any("llama", _AS_LLAMA),
    "GraniteSpeechForConditionalGeneration": _any("granite", _AS_LLAMA),
    "GraniteSpeechPlusForConditionalGeneration": _any("granite", _AS_LLAMA),
    "Idefics3ForConditionalGeneration": _IDEFICS,
    "InternS1ForConditionalGeneration": _any("qwen3"),
    "InternVLChatModel": _any("qwen2", at=("llm_config", "text_config")),
    "InternVLForConditionalGeneration": _any("qwen2"),
    "Llama4ForConditionalGeneration": _of("Llama4ForCausalLM", types=("llama4_text",)),
    "LlavaForConditionalGeneration": _any("llama", _AS_LLAMA),
    "LlavaNextForConditionalGeneration": _any("llama", _AS_LLAMA),
    "LlavaNextVideoForConditionalGeneration": _any("llama", _AS_LLAMA),
    "MiniCPMV4_6ForConditionalGeneration": _QWEN_3_5,
    "MiniCPMV4_7ForConditionalGeneration": _QWEN_3_5,
    "Mistral3ForConditionalGeneration": Wrapper(
        texts={kind: _BY_TYPE[kind] for kind in ("mistral", "ministral3")}
    ),
    "PaliGemmaForConditionalGeneration": _any("gemma", _AS_LLAMA),
    "Qwen2VLForConditionalGeneration": _QWEN_2_VL,
    "Qwen2_5OmniForConditionalGeneration": _of(
        "Qwen2ForCausalLM",
        types=("qwen2_5_omni_text",),
        at=("thinker_config.text_config", "text_config"),
    ),
    "Qwen2_5_VLForConditionalGeneration": _QWEN_2_VL,
    "Qwen3ASRForConditionalGeneration": _of(
        "Qwen3ForCausalLM",
        types=("qwen3_asr_text", "qwen3"),
        at=("thinker_config.text_config", "text_config"),
    ),
    "Qwen3VLForConditionalGeneration": _QWEN_3_VL,
    "Qwen3VLMoeForConditionalGeneration": _QWEN_3_VL_MOE,
    "Qwen3_5ForConditionalGeneration": _QWEN_3_5,
    "Qwen3_5MoeForConditionalGeneration": _QWEN_3_5_MOE,
    "SmolVLMForConditionalGeneration": _IDEFICS,
}
