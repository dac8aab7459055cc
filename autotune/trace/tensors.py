"""What the caller of a look-up has: the tensors that the keys come from.

The look-up is given numbers only. Its callers hold the tensors in local variables, whose names are
the same in vLLM 0.11.1 to 0.33.0: ``_lora_shrink`` and ``_lora_expand`` (``lora/ops/triton_ops``)
and, for experts, ``FusedMoEWithLoRA`` (0.11.1, 0.15.1: ``lora/layers/fused_moe.py``) or
``add_lora_w13`` and ``add_lora_w2`` (from 0.22.1 on: ``lora/punica_wrapper/punica_gpu.py``). Of a
name that is not there nothing is written.

No tensor's content is read but that of one on the CPU: a look-up must not wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, TypeVar

Sizes = tuple[tuple[int, ...], ...]
_Value = TypeVar("_Value")

#: The worker's functions that launch kernels before the first request, in every release.
STARTS = frozenset({"determine_available_memory", "compile_or_warm_up_model"})

#: Frames between a look-up and the function that has the tensors; in these releases none.
_NEAREST = 6

#: Frames between a look-up and the worker; a model has fewer.
_DEEPEST = 300


class Facts(NamedTuple):
    """The tensors of one look-up; None where they could not be seen.

    Attributes:
        lora_a: The sizes of each slice's A, as vLLM stacks it.
        lora_b: The sizes of each slice's B.
        dtype: Of the weights, such as ``bfloat16``.
        active_loras: The kernel's grid has so many LoRAs, the slot for none included.
        top_k: Experts that each token goes to.
        global_experts: Experts of the layer on all devices.
        fully_sharded: Whether the server runs with ``--fully-sharded-loras``.
        shared_loras: Whether the experts share a matrix: its view has a stride of 0.
    """

    lora_a: Sizes | None = None
    lora_b: Sizes | None = None
    dtype: str | None = None
    active_loras: int | None = None
    top_k: int | None = None
    global_experts: int | None = None
    fully_sharded: bool | None = None
    shared_loras: bool | None = None

    @property
    def has_tensors(self) -> bool:
        """Whether the caller's tensors could be seen: a compile ahead has none."""
        return (self.lora_a or self.lora_b) is not None


def facts_of(op: str, frame: FrameType) -> tuple[Facts, int | None]:
    """What the caller of a look-up holds, and where its first weight lies.

    Args:
        op: The op that is looked up.
        frame: The caller's.

    Returns:
        The facts, and the address of the first weight, which tells the layers apart.
    """
    if op in ("shrink", "expand"):
        name = f"lora_{'a' if op == 'shrink' else 'b'}_weights"
        names = _variables(frame, name)
        weights = _tensors(names.get(name))
        sizes = _sizes(weights)
        facts = Facts(
            lora_a=sizes if op == "shrink" else None,
            lora_b=sizes if op == "expand" else None,
            dtype=_dtype(weights),
            active_loras=_unless_fault(lambda: _on_host(names["num_active_loras"])),
        )
    else:
        names = _variables(frame, "lora_a_stacked")
        weights, others = (_of_experts(names, op, side) for side in ("a", "b"))
        facts = Facts(
            lora_a=_sizes(weights),
            lora_b=_sizes(others),
            dtype=_dtype(weights),
            top_k=_unless_fault(lambda: int(names["top_k"])),
            global_experts=_global_experts(names),
            fully_sharded=_fully_sharded(names),
            shared_loras=_shared((*weights, *others)),
        )
    return facts, _unless_fault(lambda: int(weights[0].data_ptr()))


def _variables(frame: FrameType, name: str) -> Mapping[str, Any]:
    """The variables of the nearest caller that has one of this name; else of the nearest."""
    caller: FrameType | None = frame
    for _ in range(_NEAREST):
        if caller is None:
            break
        if name in caller.f_code.co_varnames:
            return caller.f_locals
        caller = caller.f_back
    return frame.f_locals


def is_start(frame: FrameType) -> bool:
    """Whether the worker runs kernels before the first request."""
    caller: FrameType | None = frame
    for _ in range(_DEEPEST):
        if caller is None:
            return False
        if caller.f_code.co_name in STARTS:
            return True
        caller = caller.f_back
    return False


def _of_experts(names: Mapping[str, Any], op: str, side: str) -> tuple[Any, ...]:
    """The stacked weights of the experts of a layer."""
    stacked = names.get(f"lora_{side}_stacked")
    if stacked is None:  # 0.15.1: the layer has them
        part = "w13" if "_w13_" in op else "w2"
        stacked = _unless_fault(lambda: getattr(names["self"], f"{part}_lora_{side}_stacked"))
    return _tensors(stacked)


def _tensors(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - whatever the caller has
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _sizes(tensors: tuple[Any, ...]) -> Sizes | None:
    sizes = _unless_fault(lambda: tuple(tuple(map(int, each.shape)) for each in tensors))
    return sizes or None


def _dtype(tensors: tuple[Any, ...]) -> str | None:
    return _unless_fault(lambda: str(tensors[0].dtype).rpartition(".")[2])


def _global_experts(names: Mapping[str, Any]) -> int | None:
    """Experts on all devices: those that are mapped to the devices, else those of the layer."""
    mapped = names.get("expert_map")
    if mapped is not None:
        return _unless_fault(lambda: int(mapped.shape[0]))
    if "expert_map" in names:
        return _unless_fault(lambda: int(names["local_num_experts"]))
    return _unless_fault(lambda: int(names["layer"].global_num_experts))


def _on_host(number: Any) -> int | None:  # noqa: ANN401 - a number, or a tensor of one
    return None if getattr(number, "is_cuda", False) else int(number)


def _fully_sharded(names: Mapping[str, Any]) -> bool | None:
    if "fully_sharded" in names:
        return _unless_fault(lambda: bool(names["fully_sharded"]))
    return _unless_fault(lambda: bool(names["self"].fully_sharded))


def _shared(weights: tuple[Any, ...]) -> bool | None:
    """Whether a matrix stands for all experts; None where it does not, which is not written."""
    return _unless_fault(lambda: any(each.stride(1) == 0 for each in weights)) or None


def _unless_fault(read: Callable[[], _Value]) -> _Value | None:
    try:
        return read()
    except Exception:  # noqa: BLE001 - a caller's variable may be anything
        return None
