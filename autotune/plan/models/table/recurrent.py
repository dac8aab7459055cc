"""Blocks in place of attention: linear attention, state space models, convolutions."""

from __future__ import annotations

from autotune.plan.models.table.blocks import Block, column, row

_KEYS = "linear_num_key_heads * linear_key_head_dim"
_VALUES = "linear_num_value_heads * linear_value_head_dim"
_LINEAR = "linear_attention"
_LINEAR_OUT = row("linear_attn.out_proj", _VALUES, where=_LINEAR)
#: vLLM uses the weights of convolutions beneath the LoRA wrapper.
_LINEAR_CONVOLUTION = column(
    "linear_attn.conv1d",
    f"{_KEYS} + {_KEYS} + {_VALUES}",
    reads="linear_conv_kernel_dim",
    where=_LINEAR,
    computed=False,
    is_linear=False,
)

#: Gated delta rule, as the checkpoints of Qwen3-Next have it: q, k, v and z in one tensor.
DELTA_RULE_IN_ONE: Block = (
    _LINEAR_CONVOLUTION,
    column("linear_attn.in_proj_qkvz", f"{_KEYS} + {_KEYS} + {_VALUES} + {_VALUES}", where=_LINEAR),
    column(
        "linear_attn.in_proj_ba", "linear_num_value_heads + linear_num_value_heads", where=_LINEAR
    ),
    _LINEAR_OUT,
)

#: The same with z, b and a apart: Qwen3.5.
DELTA_RULE: Block = (
    _LINEAR_CONVOLUTION,
    column(
        "linear_attn.in_proj_qkvz",
        *(_KEYS, _KEYS, _VALUES, _VALUES),
        parts=("in_proj_qkv", "in_proj_z"),
        where=_LINEAR,
    ),
    column(
        "linear_attn.in_proj_ba",
        *("linear_num_value_heads", "linear_num_value_heads"),
        parts=("in_proj_b", "in_proj_a"),
        where=_LINEAR,
    ),
    _LINEAR_OUT,
)


def mamba_2(name: str, *, inner: str, groups: str, state: str, heads: str, where: str) -> Block:
    """A state space model of the second kind, whose input module has five slices.

    GPUs share a single group; of several each has its part.

    Args:
        name: The path of the block below a decoder layer.
        inner: The size of its state's input, a formula.
        groups: The field with the number of groups.
        state: The field with the size of a group's state.
        heads: The field with the number of heads.
        where: The kind of decoder layers that have it.
    """
    grouped = f"{groups} * {state}"
    return (
        column(
            f"{name}.conv1d",
            *(inner, grouped, grouped),
            reads="conv_kernel",
            where=where,
            computed=False,
            is_linear=False,
        ),
        column(
            f"{name}.in_proj",
            *(inner, inner, grouped, grouped, heads),
            where=where,
            in_one_if=groups,
        ),
        row(f"{name}.out_proj", inner, where=where),
    )


#: Short convolutions: LFM2.
SHORT_CONVOLUTION: Block = (
    column(
        "short_conv.conv",
        "hidden_size",
        reads="conv_L_cache",
        where="conv",
        computed=False,
        is_linear=False,
    ),
    column("short_conv.in_proj", "hidden_size", "hidden_size", "hidden_size", where="conv"),
    row("short_conv.out_proj", "hidden_size", where="conv"),
)
