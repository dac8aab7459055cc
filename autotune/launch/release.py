"""What the releases of vLLM read of a tuned entry, and where they differ.

Most of a MoE op's entry may go unread. From 0.22 on, and up to rank 128, ``fused_moe_lora`` runs
one kernel for shrink and expand with heuristics of its own (``_run_fused_moe_lora_one_shot`` in
``fused_moe_lora_op.py``, 0.22.0 to 0.33.0; not in 0.21.0), unless LoRAs are fully sharded. It reads
``block_m`` alone. Where blocks are assigned naively it reads nothing: it takes 16 rows, and for the
smallest batches there is a kernel without blocks of rows (``_run_fused_moe_lora_small_batch``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

from autotune.errors import InputError
from autotune.launch.environment import Environment
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import assigns_naively

#: The oldest and the newest vLLM whose sources were read.
OLDEST_RELEASE = "0.11.1"
NEWEST_RELEASE = "0.33.0"

#: What a release is called: ``0.33.0``, or ``0.28.1rc2+cu129``.
RELEASE = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}(\.[0-9]{1,9})?([.+a-z][0-9a-z.+]{0,60})?", re.ASCII)

#: The first release with the one-shot MoE kernel.
FIRST_ONE_SHOT_RELEASE = "0.22"

#: The largest rank that the one-shot kernel is for.
_ONE_SHOT_RANK = 128

#: Hopper. There, and nowhere else, ptxas miscompiles a pipelined wgmma whose left side was cast in
#: registers, as expand's x is (triton-lang/triton#9433). So ``lora_expand`` sets ``num_stages`` to
#: 1 there (``lora_expand_op.py``, 0.33.0; not in 0.32.0).
_HOPPER = (9, 0)


#: The first release that sets ``num_stages`` so.
FIRST_UNPIPELINED_RELEASE = "0.33"


def has_pipeline(op: LoraOp, capability: tuple[int, int]) -> bool:
    """Whether an op's kernel is pipelined on a GPU, in the ``num_stages`` of its configuration.

    Args:
        op: The op.
        capability: The GPU's compute capability, such as ``(9, 0)``.
    """
    return op is not LoraOp.EXPAND or capability != _HOPPER


class ServerFlag(NamedTuple):
    """A flag that not every supported release has.

    Attributes:
        spelled: How it is given to vLLM.
        since: The first release that has it.
    """

    spelled: str
    since: str


#: By the names that the flags have here (``vllm/config/lora.py`` and ``vllm/envs.py``).
SERVER_FLAGS: Mapping[str, ServerFlag] = {
    "dual_stream": ServerFlag("VLLM_LORA_ENABLE_DUAL_STREAM", "0.20"),
    "specialize_active_lora": ServerFlag("--specialize-active-lora", "0.16"),
    "mixed_moe_lora_format": ServerFlag("--enable-mixed-moe-lora-format", "0.22"),
    "moe_shared_loras": ServerFlag("--enable-moe-shared-loras", "0.26"),
    "target_modules": ServerFlag("--lora-target-modules", "0.19"),
    "expert_parallel": ServerFlag("LoRA on experts with --enable-expert-parallel", "0.21"),
    "data_parallel": ServerFlag("LoRA on experts with --data-parallel-size", "0.20"),
    "flashinfer_trtllm": ServerFlag("LoRA on FlashInfer's MXFP4 kernels", "0.33"),
    "triton": ServerFlag("LoRA on Triton's MXFP4 kernels", "0.12"),
}


def check_flag(name: str, release: str) -> None:
    """Refuse a flag that a release does not have.

    Args:
        name: One of ``SERVER_FLAGS``.
        release: vLLM's version.

    Raises:
        InputError: The release does not have it.
    """
    flag = SERVER_FLAGS[name]
    if not is_since(release, flag.since):
        raise InputError(
            f"vLLM {release} has no {flag.spelled}, {flag.since} has: leave it out, or tune for "
            "another release with --vllm"
        )


def installed_release() -> str:
    """The release of the vLLM that is installed here, which is not imported; else the newest."""
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return NEWEST_RELEASE


def is_since(release: str, first: str) -> bool:
    """Whether a release is another one or a later one; one without numbers counts as new.

    Args:
        release: vLLM's version; ``0.20`` counts as its last patch.
        first: The other: ``0.22``, or ``0.20.1`` where its patches differ.
    """
    numbers, least = _numbers(release), _numbers(first) or ()
    return numbers is None or numbers >= least[: len(numbers)]


def is_newer(release: str, last: str) -> bool:
    """Whether a release comes after another one and its patches."""
    numbers = _numbers(release)
    return numbers is None or numbers[:2] > (_numbers(last) or ())[:2]


def one_shot_rank(release: str) -> int:
    """The largest rank for which a release runs the one-shot MoE kernel; 0 if it has none.

    Args:
        release: vLLM's version, such as ``0.33.0``; one without numbers counts as new.
    """
    return _ONE_SHOT_RANK if is_since(release, FIRST_ONE_SHOT_RELEASE) else 0


def _numbers(release: str) -> tuple[int, ...] | None:
    """The numbers of a version, two or three."""
    match = re.match(r"\d+\.\d+(\.\d+)?", release)
    return None if match is None else tuple(map(int, match.group().split(".")))


def parameters_read(shape: KernelShape, release: str) -> tuple[str, ...]:
    """The parameters that a vLLM release reads from a shape's entry.

    Args:
        shape: Of any op.
        release: vLLM's version, such as ``0.33.0``.
    """
    if not reads_only_block_m(shape, release):
        return shape.op.parameters
    return () if assigns_naively(shape) else ("block_m",)


def reads_only_block_m(shape: KernelShape, release: str) -> bool:
    """Whether a vLLM release reads ``block_m`` at most from a shape's entry.

    Args:
        shape: Of any op; vLLM reads the whole entry of a dense one.
        release: vLLM's version, such as ``0.33.0``.
    """
    return shape.op.is_moe and not shape.fully_sharded and shape.rank <= one_shot_rank(release)


def release_of(environment: Environment) -> str:
    """The vLLM release to tune for: the one whose kernels are launched, else the newest."""
    return environment.provider_version if environment.provider == "vllm" else NEWEST_RELEASE


def is_timed_as_pair(shape: KernelShape, environment: Environment) -> bool:
    """Whether a MoE shape is timed by vLLM's one kernel for its shrink and its expand."""
    return environment.provider == "vllm" and reads_only_block_m(shape, release_of(environment))
