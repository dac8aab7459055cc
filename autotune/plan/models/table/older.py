"""What releases before the newest make otherwise than the table has it.

Older ones have routers that cannot have LoRA, list other embeddings, or pack other layers.
"""

from collections.abc import Mapping

from autotune.launch.release import is_newer

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


def made_otherwise(architecture: str, release: str) -> tuple[str, ...]:
    """The modules that a release makes otherwise, or not at all.

    Args:
        architecture: A language model's, as its config names it.
        release: vLLM's version.
    """
    until = _UNTIL.get(architecture, {})
    return tuple(name for name, last in until.items() if not is_newer(release, last))
