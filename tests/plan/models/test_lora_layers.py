"""The layers of real models, with shapes worked out by hand from their published dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.models import Adapter, LoraLayer, Server, lora_layers, read_config
from autotune.plan.models.modules import Split

MODELS = Path(__file__).parents[3] / "studies" / "models"


def config_of(model: str) -> dict[str, Any]:
    return dict(read_config(str(MODELS / f"{model}.json")))


def server(**flags) -> Server:
    return Server(**{"max_loras": 8, "rank": 16, **flags})


def layers_of(model: str, targets=None, **flags) -> dict[str, LoraLayer]:
    layers = lora_layers(config_of(model), server(**flags), targets)
    return {layer.name: layer for layer in layers}


def dense(shrink: tuple[int, int, int], expand: tuple[list[int], int]) -> list[dict[str, Any]]:
    """A shrink's (hidden size, slices, rank) and an expand's (slices, rank), as tables."""
    hidden_size, num_slices, rank = shrink
    return [
        {"op": "shrink", "hidden_size": hidden_size, "num_slices": num_slices, "rank": rank},
        {"op": "expand", "slice_sizes": expand[0], "rank": expand[1]},
    ]


def moe(
    *,
    hidden: int,
    experts: int,
    top_k: int,
    w13: tuple[int, int, int],
    w2: tuple[int, int],
    fully_sharded: bool = False,
    **parallel: int,
) -> list[dict[str, Any]]:
    """w13's (slices, size of a slice, rank) and w2's (input size, rank), as the four tables.

    Args:
        parallel: ``shards`` and ``global_experts``, where they are not those of one GPU.
    """
    common = {
        "hidden_size": hidden,
        "num_experts": experts,
        "top_k": top_k,
        "fully_sharded": fully_sharded,
        **parallel,
    }
    slices, size, rank = w13
    first = common | {"num_slices": slices, "intermediate_size": size, "rank": rank}
    second = common | {"num_slices": 1, "intermediate_size": w2[0], "rank": w2[1]}
    return [
        {"op": f"fused_moe_lora_{name}"} | sizes
        for name, sizes in (
            ("w13_shrink", first),
            ("w13_expand", first),
            ("w2_shrink", second),
            ("w2_expand", second),
        )
    ]


# Each case: the model, the server's flags, and layers with how often they run and what they launch.
# Numbers are written out; where they come from stands beside them.
CASES = {
    "llama-3.1-8b": (
        "llama-3.1-8b",
        {},
        {
            # 32 heads of 4096 / 32 = 128; 8 key-value heads: q 32 * 128, k and v 8 * 128.
            "self_attn.qkv_proj": (32, dense((4096, 3, 16), ([4096, 1024, 1024], 16))),
            "self_attn.o_proj": (32, dense((4096, 1, 16), ([4096], 16))),
            "mlp.gate_up_proj": (32, dense((4096, 2, 16), ([14336, 14336], 16))),
            "mlp.down_proj": (32, dense((14336, 1, 16), ([4096], 16))),
            # A row of A is looked up for each token, so there is no shrink.
            "embed_tokens": (1, [{"op": "expand", "slice_sizes": [4096], "rank": 16}]),
            "lm_head": (1, dense((4096, 1, 16), ([128256], 16))),
        },
    ),
    "llama-3.1-8b on 4 GPUs": (
        "llama-3.1-8b",
        {"tensor_parallel": 4},
        {
            # Columns: the output is divided, 32 / 4 and 8 / 4 heads; the input is whole.
            "self_attn.qkv_proj": (32, dense((4096, 3, 16), ([1024, 256, 256], 16))),
            # Rows: the input is divided, 8 heads; the output is whole and summed up.
            "self_attn.o_proj": (32, dense((1024, 1, 16), ([4096], 16))),
            "mlp.gate_up_proj": (32, dense((4096, 2, 16), ([3584, 3584], 16))),
            "mlp.down_proj": (32, dense((3584, 1, 16), ([4096], 16))),
            # vLLM gathers the logits before LoRA, and adds the embedding's LoRA after the sum.
            "embed_tokens": (1, [{"op": "expand", "slice_sizes": [4096], "rank": 16}]),
            "lm_head": (1, dense((4096, 1, 16), ([128256], 16))),
        },
    ),
    "llama-3.1-8b on 4 GPUs, fully sharded": (
        "llama-3.1-8b",
        {"tensor_parallel": 4, "fully_sharded": True, "rank": 64},
        {
            # Columns: A is divided by its rank, 64 / 4, and gathered before B.
            "self_attn.qkv_proj": (32, dense((4096, 3, 16), ([1024, 256, 256], 64))),
            # Rows: B is divided by its output, 4096 / 4; A has the whole rank.
            "self_attn.o_proj": (32, dense((1024, 1, 64), ([1024], 64))),
            "mlp.gate_up_proj": (32, dense((4096, 2, 16), ([3584, 3584], 64))),
            "mlp.down_proj": (32, dense((3584, 1, 64), ([1024], 64))),
            "embed_tokens": (1, [{"op": "expand", "slice_sizes": [4096], "rank": 64}]),
            "lm_head": (1, dense((4096, 1, 64), ([128256], 64))),
        },
    ),
    "llama-3.1-8b on 16 GPUs": (
        "llama-3.1-8b",
        {"tensor_parallel": 16},
        {
            # 8 key-value heads for 16 GPUs: each is on two of them, so one head a GPU, not half.
            "self_attn.qkv_proj": (32, dense((4096, 3, 16), ([256, 128, 128], 16))),
            "self_attn.o_proj": (32, dense((256, 1, 16), ([4096], 16))),
        },
    ),
    "llama-3.1-8b on 16 GPUs, fully sharded": (
        "llama-3.1-8b",
        {"tensor_parallel": 16, "fully_sharded": True},
        {
            # 16 / 16: a rank of 1, which happens to be one of vLLM's own.
            "self_attn.qkv_proj": (32, dense((4096, 3, 1), ([256, 128, 128], 16))),
            "self_attn.o_proj": (32, dense((256, 1, 16), ([256], 16))),
        },
    ),
    "llama-3.2-1b, whose logits are tied to the embedding": (
        "llama-3.2-1b",
        {"tensor_parallel": 2},
        {
            # Heads of 64: q 16 * 64, k and v 4 * 64.
            "self_attn.qkv_proj": (16, dense((2048, 3, 16), ([1024, 256, 256], 16))),
            "mlp.down_proj": (16, dense((4096, 1, 16), ([2048], 16))),
            # Tied weights are two modules to vLLM, each with LoRA of its own.
            "embed_tokens": (1, [{"op": "expand", "slice_sizes": [2048], "rank": 16}]),
            "lm_head": (1, dense((2048, 1, 16), ([128256], 16))),
        },
    ),
    "mistral-nemo-12b": (
        "mistral-nemo-12b",
        {},
        {
            # head_dim is given, and is not 5120 / 32: q 32 * 128 is less than the hidden size.
            "self_attn.qkv_proj": (40, dense((5120, 3, 16), ([4096, 1024, 1024], 16))),
            "self_attn.o_proj": (40, dense((4096, 1, 16), ([5120], 16))),
            "mlp.gate_up_proj": (40, dense((5120, 2, 16), ([14336, 14336], 16))),
        },
    ),
    "mixtral-8x7b on 2 GPUs": (
        "mixtral-8x7b",
        {"tensor_parallel": 2},
        {
            "self_attn.qkv_proj": (32, dense((4096, 3, 16), ([2048, 512, 512], 16))),
            # The router is on every GPU whole.
            "block_sparse_moe.gate": (32, dense((4096, 1, 16), ([8], 16))),
            # Every GPU has a part of each expert: 14336 / 2.
            "block_sparse_moe.experts": (
                32,
                moe(hidden=4096, experts=8, top_k=2, w13=(2, 7168, 16), w2=(7168, 16)),
            ),
        },
    ),
    "mixtral-8x7b on 4 GPUs, fully sharded": (
        "mixtral-8x7b",
        {"tensor_parallel": 4, "fully_sharded": True, "rank": 128},
        {
            "block_sparse_moe.gate": (32, dense((4096, 1, 128), ([8], 128))),
            # vLLM looks both kernels of w13 up by the rank of its A, 128 / 4, though the expand
            # runs on all of it, gathered from 4 GPUs. hidden stays whole in the key, though w2's
            # expand writes 4096 / 4.
            "block_sparse_moe.experts": (
                32,
                moe(
                    hidden=4096,
                    experts=8,
                    top_k=2,
                    w13=(2, 3584, 32),
                    w2=(3584, 128),
                    fully_sharded=True,
                    shards=4,
                ),
            ),
        },
    ),
    "qwen2.5-7b on 4 GPUs": (
        "qwen2.5-7b",
        {"tensor_parallel": 4},
        {
            # 28 heads of 3584 / 28 = 128, 7 a GPU; one of 4 key-value heads. Biases change nothing.
            "self_attn.qkv_proj": (28, dense((3584, 3, 16), ([896, 128, 128], 16))),
            "self_attn.o_proj": (28, dense((896, 1, 16), ([3584], 16))),
            "mlp.gate_up_proj": (28, dense((3584, 2, 16), ([4736, 4736], 16))),
            "mlp.down_proj": (28, dense((4736, 1, 16), ([3584], 16))),
        },
    ),
    "qwen1.5-moe-a2.7b": (
        "qwen1.5-moe-a2.7b",
        {},
        {
            # No grouped queries: 16 heads of 128 each for q, k and v.
            "self_attn.qkv_proj": (24, dense((2048, 3, 16), ([2048, 2048, 2048], 16))),
            "mlp.gate": (24, dense((2048, 1, 16), ([60], 16))),
            # One number a token says how much of the shared expert it gets.
            "mlp.shared_expert_gate": (24, dense((2048, 1, 16), ([1], 16))),
            "mlp.shared_expert.gate_up_proj": (24, dense((2048, 2, 16), ([5632, 5632], 16))),
            "mlp.shared_expert.down_proj": (24, dense((5632, 1, 16), ([2048], 16))),
            "mlp.experts": (
                24,
                moe(hidden=2048, experts=60, top_k=4, w13=(2, 1408, 16), w2=(1408, 16)),
            ),
        },
    ),
    "qwen3-8b on 8 GPUs, fully sharded": (
        "qwen3-8b",
        {"tensor_parallel": 8, "fully_sharded": True, "rank": 32},
        {
            # 32 / 8: a rank of 4, which no server may be given.
            "self_attn.qkv_proj": (36, dense((4096, 3, 4), ([512, 128, 128], 32))),
            "self_attn.o_proj": (36, dense((512, 1, 32), ([512], 32))),
            "mlp.gate_up_proj": (36, dense((4096, 2, 4), ([1536, 1536], 32))),
            "mlp.down_proj": (36, dense((1536, 1, 32), ([512], 32))),
        },
    ),
    "qwen3-30b-a3b on 8 GPUs": (
        "qwen3-30b-a3b",
        {"tensor_parallel": 8},
        {
            # 32 heads of 128 over a hidden size of 2048; 4 key-value heads for 8 GPUs.
            "self_attn.qkv_proj": (48, dense((2048, 3, 16), ([512, 128, 128], 16))),
            "self_attn.o_proj": (48, dense((512, 1, 16), ([2048], 16))),
            # 768 / 8 = 96.
            "mlp.experts": (
                48,
                moe(hidden=2048, experts=128, top_k=8, w13=(2, 96, 16), w2=(96, 16)),
            ),
        },
    ),
    "qwen3-30b-a3b on 8 GPUs, expert parallel": (
        "qwen3-30b-a3b",
        {"tensor_parallel": 8, "expert_parallel": True},
        {
            # Attention is divided as before; whole experts of 768 are dealt out, 128 / 8 a GPU.
            "self_attn.qkv_proj": (48, dense((2048, 3, 16), ([512, 128, 128], 16))),
            "mlp.experts": (
                48,
                moe(
                    hidden=2048,
                    experts=16,
                    top_k=8,
                    w13=(2, 768, 16),
                    w2=(768, 16),
                    global_experts=128,
                ),
            ),
        },
    ),
    "qwen1.5-moe-a2.7b on 8 GPUs, expert parallel": (
        "qwen1.5-moe-a2.7b",
        {"tensor_parallel": 8, "expert_parallel": True},
        {
            # 60 experts for 8 GPUs: the first four have 8, the others 7. The shared one is no
            # expert of theirs: 5632 / 8.
            "mlp.shared_expert.gate_up_proj": (24, dense((2048, 2, 16), ([704, 704], 16))),
            "mlp.experts": (
                24,
                moe(
                    hidden=2048,
                    experts=8,
                    top_k=4,
                    w13=(2, 1408, 16),
                    w2=(1408, 16),
                    global_experts=60,
                ),
            ),
        },
    ),
    "gemma-2-9b on 2 GPUs": (
        "gemma-2-9b",
        {"tensor_parallel": 2},
        {
            # 16 heads of 256 over a hidden size of 3584: 8 and 4 a GPU.
            "self_attn.qkv_proj": (42, dense((3584, 3, 16), ([2048, 1024, 1024], 16))),
            "self_attn.o_proj": (42, dense((2048, 1, 16), ([3584], 16))),
            "mlp.gate_up_proj": (42, dense((3584, 2, 16), ([7168, 7168], 16))),
        },
    ),
    "gemma-3-4b, whose config leaves its heads out": (
        "gemma-3-4b",
        {},
        {
            # 8 heads and 4 key-value heads of 256, as transformers fills in; no vision tower.
            "self_attn.qkv_proj": (34, dense((2560, 3, 16), ([2048, 1024, 1024], 16))),
            "self_attn.o_proj": (34, dense((2048, 1, 16), ([2560], 16))),
            "mlp.down_proj": (34, dense((10240, 1, 16), ([2560], 16))),
        },
    ),
    "phi-4 on 2 GPUs": (
        "phi-4",
        {"tensor_parallel": 2},
        {
            # q, k and v are one tensor and so one slice: (20 + 5 + 5) heads of 128.
            "self_attn.qkv_proj": (40, dense((5120, 1, 16), ([3840], 16))),
            "self_attn.o_proj": (40, dense((2560, 1, 16), ([5120], 16))),
            # gate and up likewise: 2 * 17920 / 2.
            "mlp.gate_up_proj": (40, dense((5120, 1, 16), ([17920], 16))),
            "mlp.down_proj": (40, dense((8960, 1, 16), ([5120], 16))),
        },
    ),
    "deepseek-v2-lite, with no compressed queries": (
        "deepseek-v2-lite",
        {},
        {
            # 512 of latent k and v and 64 of rotary key.
            "self_attn.kv_a_proj_with_mqa": (27, dense((2048, 1, 16), ([576], 16))),
            # 16 heads of 128 + 64.
            "self_attn.q_proj": (27, dense((2048, 1, 16), ([3072], 16))),
            # 16 heads of 128 for the values.
            "self_attn.o_proj": (27, dense((2048, 1, 16), ([2048], 16))),
            # One dense decoder layer, 26 sparse ones; 2 shared experts of 1408 are one of 2816.
            "mlp.gate_up_proj": (1, dense((2048, 2, 16), ([10944, 10944], 16))),
            "mlp.shared_experts.gate_up_proj": (26, dense((2048, 2, 16), ([2816, 2816], 16))),
            "mlp.shared_experts.down_proj": (26, dense((2816, 1, 16), ([2048], 16))),
            "mlp.experts": (
                26,
                moe(hidden=2048, experts=64, top_k=6, w13=(2, 1408, 16), w2=(1408, 16)),
            ),
        },
    ),
    "deepseek-v3 on 8 GPUs": (
        "deepseek-v3",
        {"tensor_parallel": 8},
        {
            # Whole on every GPU: 1536 for queries, 512 + 64 for keys and values.
            "self_attn.fused_qkv_a_proj": (61, dense((7168, 2, 16), ([1536, 576], 16))),
            # 128 / 8 heads of 128 + 64.
            "self_attn.q_b_proj": (61, dense((1536, 1, 16), ([3072], 16))),
            "self_attn.o_proj": (61, dense((2048, 1, 16), ([7168], 16))),
            # The first three decoder layers are dense: 18432 / 8.
            "mlp.gate_up_proj": (3, dense((7168, 2, 16), ([2304, 2304], 16))),
            "mlp.down_proj": (3, dense((2304, 1, 16), ([7168], 16))),
            "mlp.shared_experts.gate_up_proj": (58, dense((7168, 2, 16), ([256, 256], 16))),
            "mlp.experts": (
                58,
                moe(hidden=7168, experts=256, top_k=8, w13=(2, 256, 16), w2=(256, 16)),
            ),
        },
    ),
    "deepseek-v3 on 8 GPUs, fully sharded": (
        "deepseek-v3",
        {"tensor_parallel": 8, "fully_sharded": True, "rank": 64},
        {
            # Replicated, so neither A nor B is divided.
            "self_attn.fused_qkv_a_proj": (61, dense((7168, 2, 64), ([1536, 576], 64))),
            "self_attn.q_b_proj": (61, dense((1536, 1, 8), ([3072], 64))),
            # 7168 / 8.
            "self_attn.o_proj": (61, dense((2048, 1, 64), ([896], 64))),
            # 64 / 8 of the rank and 2048 / 8 of each expert; w2's A has the whole rank.
            "mlp.experts": (
                58,
                moe(
                    hidden=7168,
                    experts=256,
                    top_k=8,
                    w13=(2, 256, 8),
                    w2=(256, 64),
                    fully_sharded=True,
                    shards=8,
                ),
            ),
        },
    ),
    "deepseek-v3 on 64 GPUs, expert parallel": (
        "deepseek-v3",
        {"tensor_parallel": 64, "expert_parallel": True},
        {
            "self_attn.q_b_proj": (61, dense((1536, 1, 16), ([384], 16))),
            # 256 / 64: fewer experts here than the 8 that a token goes to.
            "mlp.experts": (
                58,
                moe(
                    hidden=7168,
                    experts=4,
                    top_k=8,
                    w13=(2, 2048, 16),
                    w2=(2048, 16),
                    global_experts=256,
                ),
            ),
        },
    ),
    "gpt-oss-120b on 2 GPUs, fully sharded": (
        "gpt-oss-120b",
        {"tensor_parallel": 2, "fully_sharded": True, "rank": 8},
        {
            # 8 / 2 of the rank; one slice of 2 * 2880 / 2, and w2 reads 2880 / 2.
            "mlp.experts": (
                36,
                moe(
                    hidden=2880,
                    experts=128,
                    top_k=4,
                    w13=(1, 2880, 4),
                    w2=(1440, 8),
                    fully_sharded=True,
                    shards=2,
                ),
            ),
        },
    ),
    "llama-4-scout on 4 GPUs, expert parallel": (
        "llama-4-scout",
        {"tensor_parallel": 4, "expert_parallel": True, "rank": 32},
        {
            # The shared expert is divided as before, 8192 / 4; the others are dealt out whole.
            "feed_forward.shared_expert.gate_up_proj": (
                48,
                dense((5120, 2, 32), ([2048, 2048], 32)),
            ),
            "feed_forward.experts": (
                48,
                moe(
                    hidden=5120,
                    experts=4,
                    top_k=1,
                    w13=(2, 8192, 32),
                    w2=(8192, 32),
                    global_experts=16,
                ),
            ),
        },
    ),
    "llama-3.2-1b on 8 GPUs, fully sharded": (
        "llama-3.2-1b",
        {"tensor_parallel": 8, "fully_sharded": True, "rank": 8},
        {
            # 8 / 8: a rank of 1. 32 heads of 64 on 8 GPUs, one of the 8 key-value heads each.
            "self_attn.qkv_proj": (16, dense((2048, 3, 1), ([256, 64, 64], 8))),
            "mlp.down_proj": (16, dense((1024, 1, 8), ([256], 8))),
        },
    ),
    "gpt-oss-120b on 2 GPUs": (
        "gpt-oss-120b",
        {"tensor_parallel": 2},
        {
            # 64 heads of 64 over a hidden size of 2880: 32 and 4 a GPU.
            "self_attn.qkv_proj": (36, dense((2880, 3, 16), ([2048, 256, 256], 16))),
            "self_attn.o_proj": (36, dense((2048, 1, 16), ([2880], 16))),
            "mlp.router": (36, dense((2880, 1, 16), ([128], 16))),
            # gate and up are one tensor and so one slice, 2 * 2880 / 2; w2 reads 2880 / 2.
            "mlp.experts": (
                36,
                moe(hidden=2880, experts=128, top_k=4, w13=(1, 2880, 16), w2=(1440, 16)),
            ),
        },
    ),
    "granite-3.1-8b": (
        "granite-3.1-8b",
        {},
        {
            "mlp.gate_up_proj": (40, dense((4096, 2, 16), ([12800, 12800], 16))),
            # An odd vocabulary is not padded for LoRA.
            "lm_head": (1, dense((4096, 1, 16), ([49155], 16))),
        },
    ),
    "olmo-2-7b on 4 GPUs": (
        "olmo-2-7b",
        {"tensor_parallel": 4},
        {
            # 32 heads of 128 for each of q, k and v, normed as a whole after they are gathered.
            "self_attn.qkv_proj": (32, dense((4096, 3, 16), ([1024, 1024, 1024], 16))),
            "mlp.gate_up_proj": (32, dense((4096, 2, 16), ([2752, 2752], 16))),
        },
    ),
    "llama-4-scout on 8 GPUs": (
        "llama-4-scout",
        {"tensor_parallel": 8},
        {
            # 40 / 8 and 8 / 8 heads of 128.
            "self_attn.qkv_proj": (48, dense((5120, 3, 16), ([640, 128, 128], 16))),
            "feed_forward.router": (48, dense((5120, 1, 16), ([16], 16))),
            "feed_forward.shared_expert.gate_up_proj": (
                48,
                dense((5120, 2, 16), ([1024, 1024], 16)),
            ),
            "feed_forward.experts": (
                48,
                moe(hidden=5120, experts=16, top_k=1, w13=(2, 1024, 16), w2=(1024, 16)),
            ),
        },
    ),
    "llama-4-maverick, every second layer of which is dense": (
        "llama-4-maverick",
        {},
        {
            "self_attn.o_proj": (48, dense((5120, 1, 16), ([5120], 16))),
            # Dense layers are twice as wide as an expert.
            "feed_forward.gate_up_proj": (24, dense((5120, 2, 16), ([16384, 16384], 16))),
            "feed_forward.shared_expert.down_proj": (24, dense((8192, 1, 16), ([5120], 16))),
            "feed_forward.experts": (
                24,
                moe(hidden=5120, experts=128, top_k=1, w13=(2, 8192, 16), w2=(8192, 16)),
            ),
        },
    ),
}


@pytest.mark.parametrize(("model", "flags", "expected"), CASES.values(), ids=CASES)
def test_layers_have_the_shapes_worked_out_by_hand(model, flags, expected):
    found = layers_of(model, **flags)

    batch = {"num_tokens": 1, "max_loras": 8}
    for name, (runs, tables) in expected.items():
        assert found[name].runs == runs
        assert list(found[name].shapes) == [KernelShape.from_mapping(t | batch) for t in tables]


ATTENTION = ["self_attn.qkv_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_up_proj", "mlp.down_proj"]
VOCABULARY = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("llama-3.1-8b", [*ATTENTION, *MLP, *VOCABULARY]),
        ("qwen3-8b", [*ATTENTION, *MLP, *VOCABULARY]),
        ("granite-3.1-8b", [*ATTENTION, *MLP, *VOCABULARY]),
        ("phi-4", [*ATTENTION, *MLP, *VOCABULARY]),
        # vLLM's classes of these list no embedding modules.
        ("mistral-nemo-12b", [*ATTENTION, *MLP]),
        ("qwen2.5-7b", [*ATTENTION, *MLP]),
        ("gemma-2-9b", [*ATTENTION, *MLP]),
        ("gemma-3-4b", [*ATTENTION, *MLP]),
        # And transformers' model in vLLM lists the embedding alone.
        ("olmo-2-7b", [*ATTENTION, *MLP, "embed_tokens"]),
        ("gpt-oss-120b", [*ATTENTION, "mlp.router", "mlp.experts"]),
        ("qwen3-30b-a3b", [*ATTENTION, "mlp.experts", *VOCABULARY]),
    ],
)
def test_without_targets_every_layer_is_there_that_vllm_gives_lora_to(model, names):
    assert list(layers_of(model)) == names


@pytest.mark.parametrize(("release", "is_launched"), [("0.22.1", True), ("0.28.0", False)])
def test_a_router_that_the_experts_call_themselves_has_kernels_in_old_releases(
    release, is_launched
):
    assert ("mlp.gate" in layers_of("qwen3-30b-a3b", release=release)) is is_launched
    assert "mlp.gate" in layers_of("qwen1.5-moe-a2.7b", release=release)


@pytest.mark.parametrize("model", sorted(path.stem for path in MODELS.glob("*.json")))
def test_every_shape_is_one_that_a_study_file_may_ask_for(model):
    for layer in layers_of(model, tensor_parallel=2).values():
        for shape in layer.shapes:
            assert KernelShape.from_mapping(shape.as_dict()) == shape


def test_every_shape_has_the_servers_adapters_and_dtype():
    layers = layers_of("mixtral-8x7b", max_loras=4, active_loras=2, dtype="float16")

    shapes = {shape for layer in layers.values() for shape in layer.shapes}
    assert {(s.num_tokens, s.max_loras, s.active_loras, s.dtype) for s in shapes} == {
        (1, 4, 2, "float16")
    }


def test_an_impossible_shape_is_refused_with_its_layer():
    with pytest.raises(InputError, match=r"^self_attn.qkv_proj: active_loras .*: got 9 of 8$"):
        layers_of("llama-3.1-8b", active_loras=9)
    few = config_of("mixtral-8x7b") | {"num_local_experts": 1}
    with pytest.raises(InputError, match=r"^block_sparse_moe.experts: top_k .*: got 2 of 1$"):
        lora_layers(few, server())


def test_logits_can_be_told_from_layers_that_run_over_the_whole_batch():
    assert layers_of("llama-3.1-8b")["lm_head"].split is Split.LOGITS


# --------------------------------------------------------------------------- which modules


@pytest.mark.parametrize(
    ("model", "targets", "names"),
    [
        ("llama-3.1-8b", ["o_proj"], ["self_attn.o_proj"]),
        # One slice is enough to wrap the module that it is packed in, and so is the module's name.
        ("llama-3.1-8b", ["q_proj", "v_proj"], ["self_attn.qkv_proj"]),
        ("llama-3.1-8b", ["qkv_proj", "down_proj"], ["self_attn.qkv_proj", "mlp.down_proj"]),
        ("phi-4", ["gate_up_proj"], ["mlp.gate_up_proj"]),
        # What has no LoRA by itself has it where it is asked for.
        ("qwen2.5-7b", ["embed_tokens", "lm_head"], ["embed_tokens", "lm_head"]),
        ("gpt-oss-120b", ["embedding"], ["embedding"]),
        # A name stands for every module that ends in it.
        ("deepseek-v3", ["down_proj"], ["mlp.down_proj", "mlp.shared_experts.down_proj"]),
        ("deepseek-v3", ["q_a_proj"], ["self_attn.fused_qkv_a_proj"]),
        # vLLM knows experts by that name alone.
        ("mixtral-8x7b", ["experts"], ["block_sparse_moe.experts"]),
    ],
)
def test_target_modules_name_layers_as_vllm_reads_them(model, targets, names):
    assert list(layers_of(model, targets=targets)) == names


def test_a_whole_path_is_one_layer_only():
    layers = layers_of("llama-3.1-8b", targets=["model.layers.7.self_attn.o_proj"])

    assert [(layer.name, layer.runs) for layer in layers.values()] == [("self_attn.o_proj", 1)]


def adapter(targets, **more) -> Adapter:
    return Adapter(source="adapter", rank=16, target_modules=targets, **more)


@pytest.mark.parametrize(
    ("model", "targets", "names"),
    [
        ("llama-3.1-8b", ("q_proj", "v_proj"), ["self_attn.qkv_proj"]),
        ("llama-3.1-8b", ("self_attn.o_proj",), ["self_attn.o_proj"]),
        ("llama-3.1-8b", r".*\.(k_proj|down_proj)", ["self_attn.qkv_proj", "mlp.down_proj"]),
        ("llama-3.1-8b", "all-linear", [*ATTENTION, *MLP]),
        ("phi-4", ("qkv_proj",), ["self_attn.qkv_proj"]),
        # An adapter of a mixture of experts names the experts' own layers.
        ("mixtral-8x7b", ("w1",), ["block_sparse_moe.experts"]),
        ("qwen3-30b-a3b", ("gate_proj", "o_proj"), ["self_attn.o_proj", "mlp.experts"]),
        ("gpt-oss-120b", ("embed_tokens",), ["embedding"]),
    ],
)
def test_an_adapters_modules_are_read_as_peft_writes_them(model, targets, names):
    assert list(layers_of(model, targets=adapter(targets))) == names


def test_an_adapter_may_name_the_parameters_of_fused_experts():
    found = adapter(("q_proj",), target_parameters=("mlp.experts.gate_up_proj",))

    assert list(layers_of("gpt-oss-120b", targets=found)) == ["self_attn.qkv_proj", "mlp.experts"]


def test_a_module_that_vllm_never_computes_is_left_out_without_an_error():
    names = list(layers_of("deepseek-v3", targets=["kv_b_proj", "o_proj"]))

    assert names == ["self_attn.o_proj"]


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BloomForCausalLM"]}, r"looked for architectures .*BloomForCausalLM"),
        ({"architectures": []}, r"unknown model: looked for architectures in its config: got \[\]"),
        ({"architectures": None}, r"got None; known are .*\[\[shapes\]\] tables"),
        ({"architectures": [["x"]]}, "unknown model"),
        (
            {"intermediate_size": None},
            r"must have intermediate_size, .*: got nothing; give its lay",
        ),
        ({"hidden_size": "4096"}, "of LlamaForCausalLM must have hidden_size, .*: got '4096'"),
        ({"num_hidden_layers": 0}, "must have num_hidden_layers, .*: got 0"),
        ({"num_attention_heads": None}, "must have num_attention_heads, .*: got nothing"),
        ({"num_key_value_heads": True}, "must have num_key_value_heads, .*: got True"),
        ({"vocab_size": 262144}, "no LoRA on lm_head for more than 258048 words: .* has 262144"),
    ],
)
def test_a_config_that_gives_no_layers_is_one_clear_line(change, message):
    config = config_of("llama-3.1-8b") | change

    with pytest.raises(InputError, match=message) as info:
        lora_layers(config, server())
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("deepseek-v3", {"first_k_dense_replace": "3"}, "first_k_dense_replace must be a whole"),
        (
            "qwen3-30b-a3b",
            {"mlp_only_layers": 3},
            "mlp_only_layers must be a list of whole numbers: got 3",
        ),
        ("qwen3-30b-a3b", {"num_experts_per_tok": None}, "must have num_experts_per_tok"),
    ],
)
def test_a_config_of_experts_that_gives_no_layers_is_one_clear_line(model, change, message):
    with pytest.raises(InputError, match=message):
        lora_layers(config_of(model) | change, server())


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("qwen2.5-7b", {"tensor_parallel": 8}, "divide num_attention_heads of .*: got 8 for 28"),
        ("phi-4", {"tensor_parallel": 4}, "divide num_key_value_heads of .*: got 4 for 10"),
        ("llama-3.1-8b", {"tensor_parallel": 0}, "tensor_parallel must be 1 or more: got 0"),
        ("llama-3.1-8b", {"rank": 1024}, "rank is above vLLM's largest: got 1024; use one of 1, 8"),
        ("llama-3.1-8b", {"rank": 20}, "rank is none of vLLM's: got 20; use one of 1, 8, 16"),
        (
            "llama-3.1-8b",
            {"rank": 1, "tensor_parallel": 2, "fully_sharded": True},
            "must divide the rank with fully-sharded LoRAs: got 2 for rank 1",
        ),
        (
            "qwen3-30b-a3b",
            {"tensor_parallel": 2, "fully_sharded": True, "expert_parallel": True},
            "no fully-sharded LoRAs with expert parallelism",
        ),
        (
            "llama-3.1-8b",
            {"targets": ["c_attn"]},
            r"--target-modules: .* called 'c_attn'; it has q",
        ),
        ("gemma-2-9b", {"targets": ["lm_head"]}, "no LoRA layer of Gemma2.* is called 'lm_head'"),
        ("gemma-3-4b", {"targets": ["lm_head"]}, "more than 258048 words: .* has 262208; leave"),
        ("mixtral-8x7b", {"targets": ["w1"]}, "is called 'w1'"),
        ("llama-3.1-8b", {"targets": adapter(("c_attn",))}, "adapter: no LoRA layer .* 'c_attn'"),
        ("llama-3.1-8b", {"targets": adapter("(")}, r"no valid pattern: got '\('"),
        (
            "llama-3.1-8b",
            {"targets": adapter(())},
            "no layer of Llama.* computes LoRA .*: got none",
        ),
        (
            "deepseek-v3",
            {"targets": ["kv_b_proj"]},
            "no layer of Deepseek.* computes .*: got kv_b_proj",
        ),
    ],
)
def test_flags_that_vllm_would_refuse_for_a_model_are_one_clear_line(model, flags, message):
    with pytest.raises(InputError, match=message) as info:
        layers_of(model, **flags)
    assert "\n" not in str(info.value)


def test_one_gpu_has_no_expert_parallelism_to_clash_with():
    both = layers_of("qwen3-30b-a3b", fully_sharded=True, expert_parallel=True)

    shapes = both["mlp.experts"].shapes
    assert {shape.num_experts for shape in shapes} == {128}
    assert [shape.op for shape in shapes] == [op for op in LoraOp if op.is_moe]
