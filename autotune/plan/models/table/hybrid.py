"""Language models whose layers differ in what stands in place of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.plan.models.modules import DENSE, Architecture
from autotune.plan.models.table.blocks import (
    ATTENTION,
    VOCABULARY,
    attention,
    column,
    mlp,
    replicated,
    row,
    ungated_mlp,
)
from autotune.plan.models.table.experts import GRANITE_EXPERTS, experts, router, ungated
from autotune.plan.models.table.layer_kinds import (
    NAMES_OF_4,
    after_the_first,
    attention_by_period,
    attention_kinds,
    by_letter,
    by_offset,
    if_many,
)
from autotune.plan.models.table.recurrent import SHORT_CONVOLUTION, mamba_2

_NEMOTRON_H = Architecture(
    modules=(
        *mamba_2(
            "mixer",
            inner="mamba_num_heads * mamba_head_dim",
            groups="n_groups",
            state="ssm_state_size",
            heads="mamba_num_heads",
            where="mamba",
        ),
        *attention("mixer", where="attention"),
        *ungated_mlp("mixer", where="mlp"),
        # The router has none: vLLM leaves it out where experts have no gate.
        *ungated_mlp(
            "mixer.shared_experts",
            "moe_shared_expert_intermediate_size * n_shared_experts",
            where="moe",
            if_given="n_shared_experts",
        ),
        replicated(
            "mixer.fc1_latent_proj", "moe_latent_size", where="moe", if_given="moe_latent_size"
        ),
        replicated(
            "mixer.fc2_latent_proj",
            "hidden_size",
            reads="moe_latent_size",
            where="moe",
            if_given="moe_latent_size",
        ),
        ungated(
            experts(
                "mixer.experts",
                number="n_routed_experts",
                parts=("0.up_proj", "0.down_proj"),
                reads="moe_latent_size",
                where="moe",
            )
        ),
        *VOCABULARY,
    ),
    kinds=(by_letter,),
    defaults={"moe_latent_size": "hidden_size"},
    spelled=("backbone.", "model."),
)
_FALCON_H1 = Architecture(
    modules=(
        *ATTENTION,
        *mamba_2(
            "mamba",
            inner="mamba_d_ssm",
            groups="mamba_n_groups",
            state="mamba_d_state",
            heads="mamba_n_heads",
            where="both",
        ),
        *mlp("feed_forward"),
        *VOCABULARY,
    ),
    kinds=(lambda _config, _index: "both",),
    defaults={"mamba_d_ssm": "hidden_size * mamba_expand", "mamba_expand": 2},
)
_ATTENTION_OR_MAMBA = attention_kinds("mamba", "attention", alike=NAMES_OF_4)
_GRANITE_HYBRID = Architecture(
    modules=(
        *mamba_2(
            "mamba",
            inner="hidden_size * mamba_expand",
            groups="mamba_n_groups",
            state="mamba_d_state",
            heads="mamba_n_heads",
            where="mamba",
        ),
        *attention(where="attention"),
        *GRANITE_EXPERTS,
        *mlp(
            "shared_mlp",
            "shared_intermediate_size",
            up="input_linear",
            down="output_linear",
            parts=(),
            if_given="shared_intermediate_size",
        ),
        *VOCABULARY,
    ),
    kinds=(_ATTENTION_OR_MAMBA, if_many("num_local_experts")),
    defaults={"mamba_expand": 2},
)
_INNER = "hidden_size * mamba_expand"
_JAMBA = Architecture(
    modules=(
        column(
            "mamba.conv1d",
            _INNER,
            reads="mamba_d_conv",
            where="mamba",
            computed=False,
            is_linear=False,
        ),
        column("mamba.in_proj", f"{_INNER} + {_INNER}", where="mamba"),
        row(
            "mamba.x_proj",
            _INNER,
            "mamba_dt_rank + mamba_d_state + mamba_d_state",
            where="mamba",
        ),
        column("mamba.dt_proj", _INNER, reads="mamba_dt_rank", where="mamba"),
        row("mamba.out_proj", _INNER, where="mamba"),
        *attention("", where="attention"),
        *mlp("feed_forward", where=DENSE),
        router("feed_forward.router", "num_experts"),
        experts("feed_forward.experts", "intermediate_size"),
        *VOCABULARY,
    ),
    kinds=(
        attention_by_period,
        by_offset("expert_layer_period", "expert_layer_offset", "num_experts"),
    ),
    defaults={"mamba_expand": 2},
)


def _width_of_lfm_2(config: Mapping[str, Any]) -> int | None:
    """Two thirds of the width that the config says, rounded up; None where that is no number."""
    width = config.get("block_ff_dim", config.get("intermediate_size"))
    multiplier = config.get("block_ffn_dim_multiplier", 1)
    multiple = config.get("block_multiple_of", 256)
    is_size = isinstance(width, int) and 0 < width <= _LARGEST_WIDTH
    is_factor = isinstance(multiplier, int | float) and 0 < multiplier <= _LARGEST_WIDTH
    if not is_size or not is_factor or not isinstance(multiple, int) or multiple < 1:
        return None
    if not config.get("block_auto_adjust_ff_dim", True):
        return int(width)
    return multiple * -(-int(multiplier * int(2 * width / 3)) // multiple)


#: Beyond it a product is no whole number anymore.
_LARGEST_WIDTH = 2**24

_CONVOLUTION_OR_ATTENTION = attention_kinds("conv", "full_attention")
_LFM_2 = Architecture(
    modules=(
        *SHORT_CONVOLUTION,
        *attention(out="out_proj", where="full_attention"),
        *mlp("feed_forward", "width", up="w13", down="w2", parts=("w1", "w3")),
        *VOCABULARY,
    ),
    kinds=(_CONVOLUTION_OR_ATTENTION,),
    derived={"width": _width_of_lfm_2},
)
_LFM_2_MOE = Architecture(
    modules=(
        *SHORT_CONVOLUTION,
        *attention(out="out_proj", where="full_attention"),
        *mlp("feed_forward", up="w13", down="w2", parts=("w1", "w3"), where=DENSE),
        router("feed_forward.gate", "num_experts"),
        experts("feed_forward.experts", parts=("0.w1", "0.w3", "0.w2")),
        *VOCABULARY,
    ),
    kinds=(
        _CONVOLUTION_OR_ATTENTION,
        after_the_first("num_dense_layers", step="", number="num_experts"),
    ),
    spelled=("model.",),
)

#: By the first name in a config's ``architectures``.
HYBRID_MODELS: Mapping[str, Architecture] = {
    "FalconH1ForCausalLM": _FALCON_H1,
    "GraniteMoeHybridForCausalLM": _GRANITE_HYBRID,
    "JambaForCausalLM": _JAMBA,
    "Lfm2ForCausalLM": _LFM_2,
    "Lfm2MoeForCausalLM": _LFM_2_MOE,
    "NemotronHForCausalLM": _NEMOTRON_H,
}
