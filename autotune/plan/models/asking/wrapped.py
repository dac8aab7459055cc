"""Runs inside vLLM: the LoRA that its manager puts on a model, read from the layers it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from autotune.plan.models.modules import Split

_Vllm = Any  # objects of vLLM and torch, which mypy does not see

#: How vLLM divides a layer, by the class that it is made of.
_SPLITS = {
    "ReplicatedLinear": Split.REPLICATED,
    "ColumnParallelLinear": Split.COLUMN,
    "RowParallelLinear": Split.ROW,
    "VocabParallelEmbedding": Split.EMBEDDING,
}


def layers_with_lora(model: _Vllm, config: _Vllm) -> dict[str, Any]:
    """Every module of a model that has LoRA, or has it where targets name it.

    Args:
        model: The model, on the meta device.
        config: vLLM's configuration of the server.

    Returns:
        The part of the answer that ``question`` describes.
    """
    _let_experts_be()
    _let_budget_be()
    manager = import_module("vllm.lora.model_manager").LoRAModelManager(
        model,
        config.scheduler_config.max_num_seqs,
        config.scheduler_config.max_num_batched_tokens,
        config.model_config.get_vocab_size(),
        config.lora_config,
        import_module("torch").device("meta"),
        config,
    )
    beneath = frozenset((*_held_by_backends(model), *_held_by_experts(model)))
    packed = manager.packed_modules_mapping
    layers = [
        _described(path, layer, packed, beneath) for path, layer in manager.modules.items()
    ] + [
        _described(path, layer, packed, beneath) | {"only_if_named": True}
        for path, layer in _vocabulary(model, manager)
    ]
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return {
        "layers": layers,
        "renamed": _renamed(mapper, "prefix"),
        "renamed_inside": _renamed(mapper, "substr"),
        "has_media": bool(getattr(manager, "supports_mm", False)),
    }


def _described(
    path: str, layer: _Vllm, packed: Mapping[str, list[str]], beneath: Iterable[int]
) -> dict[str, Any]:
    """What a layer's weights say."""
    parts = packed.get(path.rpartition(".")[2], [])
    if hasattr(layer, "w13_lora_a_stacked"):
        sizes = {"w13": _sizes(layer.w13_lora_b_stacked), "w2": _sizes(layer.w2_lora_a_stacked)}
        moe = layer.moe_config
        return {
            "path": path,
            "split": Split.EXPERTS.value,
            "reads": int(layer.w13_lora_a_stacked[0].shape[-1]),
            "writes": [size[-2] for size in sizes["w13"]],
            "middle": sizes["w2"][0][-1],
            "experts": int(moe.num_experts),
            "local_experts": sizes["w13"][0][1],
            "top_k": int(moe.experts_per_token),
            "parts": [each for each in parts if _expert(each) == _expert(parts[0])],
        }
    base = layer.base_layer
    split = _split(layer)
    return {
        "path": path,
        "split": split.value,
        "reads": 0 if split is Split.EMBEDDING else _sizes(layer.lora_a_stacked)[0][-1],
        "writes": [size[-2] for size in _sizes(layer.lora_b_stacked)],
        "computed": id(base) not in beneath and not _is_convolution(base),
        "is_linear": not _is_convolution(base),
        "parts": parts if len(parts) > 1 else [],
    }


def _expert(part: str) -> str:
    """The expert that a layer is of: ``experts.0`` of ``experts.0.up_proj``."""
    return part.rpartition(".")[0]


def _split(layer: _Vllm) -> Split:
    """How vLLM divides a layer among GPUs."""
    if type(layer).__name__ == "LogitsProcessorWithLoRA":
        return Split.LOGITS
    names = [each.__name__ for each in type(layer.base_layer).__mro__]
    split = next(_SPLITS[name] for name in names if name in _SPLITS)
    is_whole = getattr(layer.base_layer, "tp_size", None) == 1 and split in _DIVIDED
    return Split.REPLICATED if is_whole and _group_size() > 1 else split


_DIVIDED = (Split.COLUMN, Split.ROW)


def _group_size() -> int:
    return int(import_module("vllm.distributed").get_tensor_model_parallel_world_size())


def _sizes(stacked: _Vllm) -> list[list[int]]:
    tensors = stacked if isinstance(stacked, tuple | list) else [stacked]
    return [[int(size) for size in each.shape] for each in tensors]


def _is_convolution(base: _Vllm) -> bool:
    """Whether a linear layer holds the weights of a convolution, which vLLM uses by themselves."""
    weight = getattr(base, "weight", None)
    return weight is not None and weight.dim() > 2


def _held_by_backends(model: _Vllm) -> Iterator[int]:
    """The layers that attention's backends call themselves, beneath vLLM's LoRA."""
    for module in model.modules():
        backend = vars(module).get("impl")
        yield from map(id, getattr(backend, "__dict__", {}).values())


def _held_by_experts(model: _Vllm) -> Iterator[int]:
    """The routers that fused experts call themselves, beneath vLLM's LoRA.

    The manager puts a router's LoRA where the experts were, which is its own layer by then, and not
    into the experts (``rewire`` in ``vllm/lora/model_manager.py``, 0.24.0 to 0.33.0).
    """
    for module in model.modules():
        if hasattr(module, "w13_lora_a_stacked"):
            yield id(getattr(module.base_layer, "gate", None))


def _vocabulary(model: _Vllm, manager: _Vllm) -> Iterator[tuple[str, _Vllm]]:
    """Embeddings and logits that get LoRA only where targets name them."""
    utils: Any = import_module("vllm.lora.utils")
    settings = manager.lora_slots, manager.lora_config
    seen: set[int] = set()
    for path, module in list(model.named_modules(remove_duplicate=False)):
        is_there = any(each.__name__ == "VocabParallelEmbedding" for each in type(module).__mro__)
        if not is_there or path in manager.modules or path.endswith(".base_layer"):
            continue
        if id(module) in seen and "lm_head" not in path:  # the same under another name
            continue
        seen.add(id(module))
        try:
            if manager._get_punica_wrapper(path) is None:  # noqa: SLF001 - as its manager does
                continue
            if "lm_head" in path:
                parent = path.rpartition("lm_head")[0]
                processor = model.get_submodule(f"{parent}logits_processor")
                yield (
                    path,
                    utils.from_layer_logits_processor(processor, module, *settings, model.config),
                )
            layer = utils.from_layer(module, *settings, [], model.config)
        except (AttributeError, ValueError):  # vLLM would stop at such a target
            continue
        if "lm_head" not in path and layer is not module:
            yield path, layer


def _renamed(mapper: _Vllm, where: str) -> list[tuple[str, str]]:
    """What checkpoints have at one place of a path, and what vLLM has there."""
    found = getattr(mapper, f"orig_to_new_{where}", None) or {}
    return [(old, new) for old, new in found.items() if new is not None]


def _let_experts_be() -> None:
    """Have vLLM's experts with LoRA made without kernels: only their sizes are wanted."""
    layers: Any = import_module("vllm.lora.layers.fused_moe")
    torch: Any = import_module("torch")

    def begin(self: _Vllm, base_layer: _Vllm) -> None:
        torch.nn.Module.__init__(self)
        self.base_layer = base_layer
        self.moe_config = base_layer.moe_config
        self._shared_experts = getattr(base_layer, "_shared_experts", None)
        self.tp_size = self.moe_config.moe_parallel_config.tp_size
        self.tp_rank = self.moe_config.moe_parallel_config.tp_rank
        self.device = torch.device("meta")
        self._w13_slices = 2 if self.moe_config.is_act_and_mul else 1
        self._enable_aux_cuda_stream = False
        self.enable_moe_shared_loras = False
        self.n_slices = self.moe_config.num_local_experts * (self._w13_slices + 1)
        self._ep_check()

    layers.FusedMoEWithLoRA.__init__ = begin
    layers.FusedMoEWithLoRA.set_mapping = layers.BaseLayerWithLoRA.set_mapping


def _let_budget_be() -> None:
    """Have vLLM count no tokens of images: that needs the model's processor."""
    manager: Any = import_module("vllm.lora.model_manager")

    class Budget:
        mm_max_items_per_prompt: Mapping[str, int] = {"image": 1}
        mm_max_toks_per_item: Mapping[str, int] = {"image": 1}

        def __init__(self, *_: object) -> None:
            pass

        def get_encoder_budget(self) -> int:
            return 2048

    manager.MultiModalBudget = Budget
