"""Layers of a mixture of experts, for tests: their shapes, selections and recordings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import strategies as st

from autotune.choose.selection import Selection, select
from autotune.launch.config import KernelConfig
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape

QWEN = {"hidden_size": 2048, "intermediate_size": 768, "num_experts": 128, "top_k": 8}

DEFAULT: dict[str, int] = {
    "block_m": 64,
    "block_n": 64,
    "block_k": 32,
    "split_k": 1,
    "group_size_m": 8,
    "num_warps": 4,
    "num_stages": 3,
}

BLOCK_MS = (16, 32, 64, 128)


def moe_table(op: LoraOp, **changes: Any) -> dict[str, Any]:
    """A MoE op's shape as a study file gives it: Qwen3-30B-A3B's, 16 tokens."""
    table = {"op": op.value, "num_tokens": 16, "rank": 256, "max_loras": 8} | QWEN | changes
    if table.pop("fused", False) and op in (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND):
        table |= {"num_slices": 1, "intermediate_size": 2 * table["intermediate_size"]}
    return table


def moe_shape(op: LoraOp, **changes: Any) -> KernelShape:
    return KernelShape.from_mapping(moe_table(op, **changes))


def moe_config(**changes: int) -> KernelConfig:
    return KernelConfig.from_mapping(LoraOp.W13_SHRINK, DEFAULT | changes)


def moe_selection(
    shape: KernelShape, latencies_us: Mapping[int, float], *, default_us: float | None = 20.0
) -> Selection:
    """A study's selection: per ``block_m`` one configuration beside the default.

    Args:
        shape: The shape.
        latencies_us: Per ``block_m`` the latency of its best.
        default_us: The default's; None where it does not run.
    """
    default = moe_config()
    measured = {moe_config(block_m=m, num_warps=8): us for m, us in latencies_us.items()}
    if default_us is not None:
        measured[default] = default_us
    samples = {
        config: tuple(us * (1 + 0.001 * (i % 5)) for i in range(15))
        for config, us in measured.items()
    }
    config, ratio = select(default, samples)
    return Selection(
        shape=shape,
        config=config,
        default=default,
        samples_us=samples,
        ratio=ratio,
        trials=len(samples),
        outcomes={"ok": len(samples)},
    )


def layer_selections(
    latencies_us: Mapping[LoraOp, Mapping[int, float]], **changes: Any
) -> list[Selection]:
    """The selections of one layer's ops."""
    return [moe_selection(moe_shape(op, **changes), us) for op, us in latencies_us.items()]


#: Of a model: hidden and intermediate size, experts, top-k. The last one fuses gate and up.
_MODELS = ((2048, 768, 128, 8), (4096, 14336, 8, 2), (2880, 2880, 32, 4))


@st.composite
def layers(draw: st.DrawFn, ops: st.SearchStrategy[Iterable[LoraOp]]) -> list[Selection]:
    """The selections of one layer of one of a few models, so that layers meet in the look-up."""
    hidden, i, experts, top_k = draw(st.sampled_from(_MODELS))
    changes = {
        "hidden_size": hidden,
        "intermediate_size": i,
        "num_experts": experts,
        "top_k": top_k,
        "fused": hidden == 2880,
        "num_tokens": draw(st.sampled_from([1, 16, 64, 256])),
        "rank": draw(st.sampled_from([16, 256])),
        "max_loras": draw(st.sampled_from([2, 8])),
        "routing": "uniform",
    }
    us = st.floats(5, 40)
    return [
        moe_selection(
            moe_shape(op, **changes),
            draw(st.dictionaries(st.sampled_from(BLOCK_MS), us)),
            default_us=draw(us),
        )
        for op in draw(ops)
    ]


def sets_of_studies(*, whole: bool) -> st.SearchStrategy[list[Selection]]:
    """Selections of any layers, no shape twice; all four ops of each, or any of them."""
    some = st.lists(st.sampled_from(MOE_OPS), min_size=1, max_size=4, unique=True)
    drawn = st.lists(layers(st.just(MOE_OPS) if whole else some), min_size=1, max_size=5)
    return drawn.map(lambda those: list({s.shape: s for one in those for s in one}.values()))


_AXES = {
    "block_m": (16, 32, 64, 128),
    "block_n": (16, 32, 64),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4),
}

#: What each op's best ``block_m`` is by itself, and how much a step away from it costs: together
#: 32 is best, though only for one op.
_BOWLS = {
    LoraOp.W13_SHRINK: (16, 1.0),
    LoraOp.W13_EXPAND: (32, 8.0),
    LoraOp.W2_SHRINK: (64, 1.0),
    LoraOp.W2_EXPAND: (16, 1.0),
}


def moe_latency_us(op: LoraOp, config: Mapping[str, int]) -> float:
    """20 µs at the op's best ``block_m`` and the best of the other axes, more beside them."""
    best, cost_us = _BOWLS[op]
    steps = abs(config["block_m"].bit_length() - best.bit_length())
    others = abs(config["block_n"].bit_length() - 6) + abs(config["num_warps"].bit_length() - 4)
    return 20 + cost_us * steps + 2 * others + abs(config["num_stages"] - 3)


def moe_lines(shape: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A recording's lines of a MoE shape, vLLM's default marked."""
    found = []
    for values in itertools.product(*_AXES.values()):
        config = DEFAULT | dict(zip(_AXES, values, strict=True))
        us = moe_latency_us(LoraOp(shape["op"]), config)
        samples = [round(us * (1 + 0.001 * (i % 5)), 3) for i in range(15)]
        line = {"shape": dict(shape), "config": config, "outcome": "ok", "samples_us": samples}
        found.append(line | ({"is_default": True} if config == DEFAULT else {}))
    return found
