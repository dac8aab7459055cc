"""The flags of a vLLM server that decide what its LoRA layers launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from autotune.errors import InputError
from autotune.launch.op import VLLM_RANKS, LoraOp
from autotune.launch.release import NEWEST_RELEASE, SERVER_FLAGS, check_flag, is_since
from autotune.launch.shape import KernelShape


class Padding(NamedTuple):
    """What the sizes of experts in MXFP4 are rounded up to a multiple of, on one GPU."""

    intermediate: int
    hidden: int


#: By vLLM's ``--moe-backend``, of those that serve MXFP4 with LoRA on NVIDIA's GPUs
#: (``mxfp4_round_up_hidden_size_and_intermediate_size`` in
#: ``vllm/model_executor/layers/fused_moe/oracle/mxfp4.py``, 0.19.0 to 0.33.0).
MOE_BACKENDS: Mapping[str, Padding] = {
    "triton": Padding(intermediate=64, hidden=1),
    "marlin": Padding(intermediate=128, hidden=256),
    "flashinfer_trtllm": Padding(intermediate=128, hidden=256),
}

#: What ``auto`` chooses with LoRA: Triton's fused kernels, which come first, have none
#: (``supports_lora`` in ``vllm/model_executor/layers/fused_moe/modular_kernel.py``, 0.20.0 to
#: 0.33.0). FlashInfer's, first on Blackwell, pad alike.
_AUTO = "marlin"

#: The first release whose ``auto`` is that: 0.12 and 0.13 take Triton's from Hopper on
#: (``get_mxfp4_backend_with_lora`` in ``vllm/model_executor/layers/quantization/mxfp4.py``).
_FIRST_AUTO = "0.14"

#: The first release in which Triton's kernels (``triton_unfused``, those with LoRA) pad the LoRA's
#: sizes, too (``maybe_roundup_sizes`` in ``vllm/model_executor/layers/quantization/mxfp4.py``).
_TRITON_PADS = "0.19"

#: The first release with a class for gate and up in one (``FusedMoE3DWithLoRA``).
_HAS_ONE = "0.12"

#: The first release of which ``--enable-moe-shared-loras`` has gate and up apart in models whose
#: experts have both in one (``_is_3d_moe_model`` in ``vllm/lora/model_manager.py``; not in 0.31.0).
_SHARED_DIVIDES = "0.32"


#: The first release that runs layers of several slices beside their LoRA, too.
_ALL_BESIDE = "0.25"

#: Flags that some releases lack, whatever the model is.
_FLAGS = ("dual_stream", "specialize_active_lora", "mixed_moe_lora_format", "moe_shared_loras")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The flags of a vLLM server that decide what its LoRA layers launch.

    Attributes:
        rank: Its ``--max-lora-rank``.
        max_loras: Its ``--max-loras``.
        active_loras: How many adapters the tokens of a batch are spread over; None for
            ``max_loras``.
        dtype: Of the LoRA weights.
        tensor_parallel: Its ``--tensor-parallel-size``.
        fully_sharded: Whether it runs with ``--fully-sharded-loras``.
        expert_parallel: Whether it runs with ``--enable-expert-parallel``.
        mixed_moe_lora_format: Whether it runs with ``--enable-mixed-moe-lora-format``.
        moe_shared_loras: Whether it runs with ``--enable-moe-shared-loras``.
        moe_backend: Its ``--moe-backend``, one of ``MOE_BACKENDS``, or what ``auto`` chose there;
            it pads experts in MXFP4. None for what ``auto`` of the release prefers.
        data_parallel: Its ``--data-parallel-size``; experts get the tokens of all of these.
        dual_stream: Whether it runs with ``VLLM_LORA_ENABLE_DUAL_STREAM``.
        specialize_active_lora: Whether it runs with ``--specialize-active-lora``.
        release: vLLM's version.

    Raises:
        InputError: vLLM has no such rank, its release has no such flag, or the number of GPUs is
            below 1.
    """

    rank: int
    max_loras: int
    active_loras: int | None = None
    dtype: str = "bfloat16"
    tensor_parallel: int = 1
    fully_sharded: bool = False
    expert_parallel: bool = False
    mixed_moe_lora_format: bool = False
    moe_shared_loras: bool = False
    moe_backend: str | None = None
    data_parallel: int = 1
    dual_stream: bool = False
    specialize_active_lora: bool = False
    release: str = NEWEST_RELEASE

    def __post_init__(self) -> None:
        if self.rank not in VLLM_RANKS:
            most = "is above vLLM's largest" if self.rank > VLLM_RANKS[-1] else "is none of vLLM's"
            allowed = ", ".join(map(str, VLLM_RANKS))
            raise InputError(f"rank {most}: got {self.rank}; use one of {allowed}")
        for name in ("tensor_parallel", "data_parallel"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more: got {getattr(self, name)}")
        for name in _FLAGS:
            if getattr(self, name):
                check_flag(name, self.release)

    @property
    def shards(self) -> int:
        """How many GPUs divide what is whole without fully-sharded LoRAs; 1 without those."""
        return self.tensor_parallel if self.fully_sharded else 1

    @property
    def divides_w13(self) -> bool:
        """Whether gate and up are two slices even where a model's experts have both in one."""
        shared = self.moe_shared_loras and is_since(self.release, _SHARED_DIVIDES)
        return self.mixed_moe_lora_format or shared or not is_since(self.release, _HAS_ONE)

    @property
    def has_own_stream(self) -> bool:
        """Whether LoRA runs beside the base layers; vLLM turns that off where it is fully sharded.

        The source is ``_validate_lora_config`` in ``vllm/config/lora.py``, 0.22.1 to 0.33.0.
        """
        return self.dual_stream and not self.fully_sharded

    def adds_to_base(self, slices: int) -> bool:
        """Whether LoRA is added to what a divided layer wrote, and not written beside it.

        Args:
            slices: Of the layer; up to 0.24 those of several run one after the other all the same
                (``MergedColumnParallelLinearWithLoRA.apply`` in
                ``vllm/lora/layers/column_parallel_linear.py``).
        """
        if not self.has_own_stream:
            return True
        return slices > 1 and not is_since(self.release, _ALL_BESIDE)

    @property
    def expert_gpus(self) -> int:
        """How many GPUs share a layer's experts, or the parts of each expert."""
        return self.tensor_parallel * self.data_parallel

    @property
    def _auto(self) -> str:
        """The ``--moe-backend`` that vLLM chooses by itself."""
        had_triton = is_since(self.release, SERVER_FLAGS["triton"].since)
        return "triton" if had_triton and not is_since(self.release, _FIRST_AUTO) else _AUTO

    def padding(self) -> Padding:
        """What the sizes of experts in MXFP4 are rounded up to.

        Raises:
            InputError: The release has no LoRA on such experts with these kernels.
        """
        backend = self.moe_backend or self._auto
        if backend in SERVER_FLAGS:
            check_flag(backend, self.release)
        pads = backend != "triton" or is_since(self.release, _TRITON_PADS)
        return MOE_BACKENDS[backend] if pads else Padding(1, 1)

    @property
    def part_of_rank(self) -> int:
        """The rank of A on one GPU, for the modules whose A fully-sharded LoRAs divide.

        Raises:
            InputError: The GPUs do not divide the rank.
        """
        if self.rank % self.shards:
            raise InputError(
                f"tensor_parallel must divide the rank with fully-sharded LoRAs: "
                f"got {self.tensor_parallel} for rank {self.rank}"
            )
        return self.rank // self.shards

    def shape(self, op: LoraOp, **sizes: Any) -> KernelShape:  # noqa: ANN401 - a shape's fields
        """A kernel's shape for one token.

        Args:
            op: The kernel.
            sizes: Fields of ``KernelShape`` that the server's flags do not decide, and ``rank``
                where it is not the server's.

        Raises:
            ShapeError: vLLM would never launch such a kernel.
        """
        values = {
            "op": op,
            "num_tokens": 1,
            "rank": self.rank,
            "max_loras": self.max_loras,
            "active_loras": self.max_loras if self.active_loras is None else self.active_loras,
            "dtype": self.dtype,
            "dual_stream": self.has_own_stream,
            "specialize_active_lora": self.specialize_active_lora,
        }
        return KernelShape.from_mapping(values | sizes)
