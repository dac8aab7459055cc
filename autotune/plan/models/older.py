"""What releases before the newest make otherwise than the table of architectures has it.

Older ones have routers that cannot have LoRA, list other embeddings, or pack other layers.
"""

from collections.abc import Mapping

from autotune.errors import InputError
from autotune.launch.release import is_newer, is_since
from autotune.plan.models.language_model import Model
from autotune.plan.models.modules import Split
from autotune.plan.models.table import ARCHITECTURES

#: By architecture and module, the last release that makes it otherwise, as those before it do.
_UNTIL: Mapping[str, Mapping[str, str]] = {
    "AfmoeForCausalLM": {"mlp.gate": "0.30.0"},
    "ArceeForCausalLM": {
        "embed_tokens": "0.31.0",
        "self_attn.o_proj": "0.31.0",
        "self_attn.qkv_proj": "0.31.0",
    },
    "BailingMoeForCausalLM": {"mlp.gate": "0.30.0"},
    "BailingMoeV2ForCausalLM": {"mlp.gate": "0.30.0"},
    "CwmForCausalLM": {"lm_head": "0.31.0"},
    "FlexOlmoForCausalLM": {"embed_tokens": "0.28.0"},
    "Gemma3ForCausalLM": {"lm_head": "0.13.0"},
    "Gemma4ForCausalLM": {"self_attn.q_proj": "0.29.0"},
    "Glm4MoeForCausalLM": {"mlp.gate": "0.30.0"},
    "Glm4MoeLiteForCausalLM": {"mlp.gate": "0.30.0"},
    "GlmForCausalLM": {"lm_head": "0.31.0", "mlp.gate_up_proj": "0.31.0"},
    "GptOssForCausalLM": {"mlp.router": "0.16.0"},
    "HunYuanDenseV1ForCausalLM": {"embed_tokens": "0.28.0"},
    "Jais2ForCausalLM": {"lm_head": "0.31.0"},
    "Lfm2ForCausalLM": {"feed_forward.w13": "0.16.0"},
    "Lfm2MoeForCausalLM": {"feed_forward.w13": "0.16.0"},
    "MellumForCausalLM": {"lm_head": "0.31.0"},
    "MistralForCausalLM": {"embed_tokens": "0.14.1", "lm_head": "0.14.1"},
    "NemotronHForCausalLM": {"mixer.fc1_latent_proj": "0.13.0", "mixer.fc2_latent_proj": "0.12.0"},
    "Olmo2ForCausalLM": {"embed_tokens": "0.25.1"},
    "Olmo3ForCausalLM": {"embed_tokens": "0.28.0"},
    "OlmoForCausalLM": {"embed_tokens": "0.25.1"},
    "PhiForCausalLM": {"embed_tokens": "0.31.0"},
    "Qwen2MoeForCausalLM": {"mlp.shared_expert_gate": "0.13.0"},
    "Qwen3ForCausalLM": {"embed_tokens": "0.15.1", "lm_head": "0.15.1"},
    "Qwen3MoeForCausalLM": {
        "embed_tokens": "0.15.1",
        "lm_head": "0.15.1",
        "mlp.shared_expert_gate": "0.14.1",
    },
    "Qwen3NextForCausalLM": {"mlp.shared_expert_gate": "0.13.0"},
    "Qwen3_5ForCausalLM": {"embed_tokens": "0.28.0", "lm_head": "0.28.0"},
    "Qwen3_5MoeForCausalLM": {"embed_tokens": "0.28.0", "lm_head": "0.28.0"},
    "SarvamMoEForCausalLM": {"mlp.gate": "0.30.0"},
    "SeedOssForCausalLM": {"embed_tokens": "0.31.0"},
}

#: By architecture, the last release whose class has no LoRA.
_NO_LORA_UNTIL: Mapping[str, str] = {
    "Blip2ForConditionalGeneration": "0.13.0",
    "GPTNeoXForCausalLM": "0.31.0",
    "Gemma4ForConditionalGeneration": "0.19.1",
    "LlavaForConditionalGeneration": "0.13.0",
    "LlavaNextForConditionalGeneration": "0.28.0",
    "LlavaNextVideoForConditionalGeneration": "0.25.1",
    "MiniCPMV4_6ForConditionalGeneration": "0.24.0",
    "MiniMaxM2ForCausalLM": "0.14.1",
    "PaliGemmaForConditionalGeneration": "0.13.0",
    "Plamo3ForCausalLM": "0.13.0",
    "Qwen3ASRForConditionalGeneration": "0.19.1",
    "Starcoder2ForCausalLM": "0.24.0",
}

#: The first release that looks logits up by the vocabulary's own size. Those before round it up to
#: whole 256s, and add 256 for the tokens of adapters in Llama's, Granite's and Mixtral's classes
#: (``create_lora_weights`` in ``vllm/lora/layers/logits_processor.py``).
_PLAIN_VOCABULARY = "0.12"


def check_has_lora(architecture: str, release: str) -> None:
    """Refuse a model that a release has no LoRA for.

    Args:
        architecture: As a config names it.
        release: vLLM's version.

    Raises:
        InputError: Its class has none.
    """
    last = _NO_LORA_UNTIL.get(architecture)
    if last is not None and not is_newer(release, last):
        raise InputError(
            f"vLLM {release} has no LoRA for {architecture}, as up to {last}: tune for a later "
            "release with --vllm"
        )


def made_otherwise(model: Model, release: str) -> frozenset[str]:
    """The modules of a model that a release makes otherwise, or not at all.

    Args:
        model: The model.
        release: vLLM's version.
    """
    names = [model.name]
    if model.wrapper is not None:  # its language model's own name is not in the config
        names = [name for name, entry in ARCHITECTURES.items() if entry == model.architecture]
    otherwise = {
        module
        for name in names
        for module, last in _UNTIL.get(name, {}).items()
        if not is_newer(release, last)
    }
    if not is_since(release, _PLAIN_VOCABULARY):
        logits = (each for each in model.architecture.modules if each.split is Split.LOGITS)
        otherwise.update(each.name for each in logits)
    return frozenset(otherwise)
