"""What vLLM is started with: the flags that autotune was given, as ``vllm serve`` spells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotune.errors import InputError, printable
from autotune.plan.model import ModelTable
from autotune.plan.study import StudyPlan

#: By their names in ``[model]``, the flags that decide what LoRA's kernels are launched with.
_OF_MODEL = {
    "tensor_parallel": "--tensor-parallel-size",
    "fully_sharded": "--fully-sharded-loras",
    "expert_parallel": "--enable-expert-parallel",
    "mixed_moe_lora_format": "--enable-mixed-moe-lora-format",
    "moe_shared_loras": "--enable-moe-shared-loras",
    "moe_backend": "--moe-backend",
    "specialize_active_lora": "--specialize-active-lora",
    "target_modules": "--lora-target-modules",
}

#: By their names in ``[tokens]``, the limits of batches.
_OF_BATCHES = {
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_num_seqs": "--max-num-seqs",
    "cudagraph_capture_sizes": "--cudagraph-capture-sizes",
    "max_cudagraph_capture_size": "--max-cudagraph-capture-size",
}

#: What is given to autotune, and not after ``--``: vLLM's spellings by autotune's.
_AUTOTUNES = {
    "--model": ("--model",),
    "--max-loras": ("--max-loras",),
    "--rank": ("--max-lora-rank",),
    "--tp": ("--tensor-parallel-size", "-tp"),
    "--dp": ("--data-parallel-size", "-dp"),
    "--fully-sharded": ("--fully-sharded-loras",),
    "--expert-parallel": ("--enable-expert-parallel", "-ep"),
    "--mixed-moe-lora-format": ("--enable-mixed-moe-lora-format",),
    "--moe-shared-loras": ("--enable-moe-shared-loras",),
    "--moe-backend": ("--moe-backend",),
    "--specialize-active-lora": ("--specialize-active-lora",),
    "--target-modules": ("--lora-target-modules",),
    **{flag: (flag,) for flag in _OF_BATCHES.values()},
}

#: Given by autotune alone: each of the compared servers has its own.
_FIXED = ("--enable-lora", "--lora-modules", "--port", "--host", "--skip-tokenizer-init")


def check_after(arguments: Sequence[str]) -> None:
    """Refuse arguments for vLLM that autotune has to know of, or that name no flag.

    Raises:
        InputError: There is one.
    """
    if arguments and not arguments[0].startswith("-"):
        raise InputError(
            f"after -- come flags of vllm serve: got {printable(arguments[0])}; give the model as "
            "--model before it"
        )
    for each in arguments:
        name = each.partition("=")[0].replace("_", "-")
        if not name.startswith("-"):
            continue
        flag = f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name
        if flag in _FIXED:
            raise InputError(f"{name} after --: autotune gives each server its own; leave it out")
        for own, spellings in _AUTOTUNES.items():
            if flag in spellings:
                raise InputError(
                    f"{name} after --: autotune has to know of it; give it as {own} before --"
                )


def lora_flags(model: ModelTable, *, rank: int, max_loras: int) -> list[str]:
    """The flags of a server with LoRA, as they are typed.

    Raises:
        InputError: A flag cannot be compared so.
    """
    flags = ["--enable-lora", "--max-loras", str(max_loras), "--max-lora-rank", str(rank)]
    values = {name: getattr(model, name) for name in _OF_MODEL}
    return [*flags, *_typed(_OF_MODEL, {**values, "tensor_parallel": None})]


def common_flags(plan: StudyPlan, model: ModelTable) -> list[str]:
    """The flags of every server, with LoRA and without.

    Raises:
        InputError: A flag cannot be compared so.
    """
    if model.data_parallel > 1:
        raise InputError(
            f"--server compares single servers: got --dp {model.data_parallel}; leave it out"
        )
    if plan.limits.get("speculative_tokens"):
        raise InputError(
            "--server has no model that drafts tokens: got --speculative-tokens; leave it out"
        )
    tensor_parallel = model.tensor_parallel if model.tensor_parallel > 1 else None
    sizes = {"tensor_parallel": tensor_parallel}
    return [*_typed(_OF_MODEL, sizes), *_typed(_OF_BATCHES, plan.limits)]


def variables_of(model: ModelTable) -> dict[str, str]:
    """The environment variables of every server."""
    return {"VLLM_LORA_ENABLE_DUAL_STREAM": "1"} if model.dual_stream else {}


def _typed(flags: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    for name, flag in flags.items():
        value = values.get(name)
        if value is True:
            yield flag
        elif isinstance(value, list | tuple):
            yield from (flag, *map(str, value))
        elif value not in (None, False):
            yield from (flag, str(value))
