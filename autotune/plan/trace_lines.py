"""The lines of a trace: its header, and what vLLM's look-ups were asked.

The plugin in ``autotune/trace`` writes them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from autotune.errors import ShapeError, shown
from autotune.launch.op import DenseKey, LookupKey, LoraOp, MoeKey, key_text
from autotune.launch.release import RELEASE
from autotune.launch.shape import LARGEST_SIZE, RANKS_ON_GPU, KernelShape
from autotune.untrusted import Count, Untrusted

#: When a look-up was asked: before the first request, while a CUDA graph was captured then, later.
When = Literal["capture", "start", "serving"]

#: A size of a tensor, or a key.
_Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]

#: The sizes of each slice's weights: adapters, experts or 1, and a matrix.
_Weights = Annotated[
    list[Annotated[list[_Size], Field(min_length=3, max_length=4)]],
    Field(min_length=1, max_length=64),
]

#: What a GPU's name holds, such as ``Quadro RTX 6000/8000``: it becomes part of files' names.
_GPU = re.compile(r"[A-Za-z0-9 _+()/-]{0,200}")

_CLASSIFIER = "a classifier's head, whose rank is its number of classes: vLLM takes the nearest one"


def _gpu(name: str) -> str:
    if _GPU.fullmatch(name) is None:
        raise ValueError(
            "must be a GPU's name: at most 200 letters, digits, spaces and characters of _+()/-: "
            f"got {shown(name)}"
        )
    return name


class Header(Untrusted):
    """The first line."""

    format: str = Field("", alias="schema")
    vllm: Annotated[str, Field(max_length=100)] = ""
    gpu: Annotated[str, AfterValidator(_gpu)] = ""

    @property
    def notes(self) -> list[str]:
        """What a user must know of the release."""
        if not self.vllm or RELEASE.fullmatch(self.vllm):
            return []
        note = (
            f"vllm in line 1 is no release of vLLM that autotune knows: got {shown(self.vllm)}; "
            "tune with the vLLM that the server runs"
        )
        return [note]


class Figures(Untrusted):
    """What every other line has."""

    process: Annotated[str, Field(max_length=200)]
    number: Count
    count: Annotated[int, Field(ge=0, lt=2**63)]
    layers: Annotated[int, Field(ge=1, lt=2**31)]
    when: When


class LookUp(Figures):
    """The first line of a look-up."""

    op: Annotated[str, Field(max_length=200)]
    max_loras: _Size
    batch: _Size
    hidden_size: _Size
    rank: _Size
    num_slices: _Size
    add_inputs: bool | None = None
    moe_intermediate_size: _Size | None = None
    lora_a: _Weights | None = None
    lora_b: _Weights | None = None
    dtype: Annotated[str, Field(max_length=200)] = "bfloat16"
    active_loras: Annotated[int, Field(ge=0, le=LARGEST_SIZE)] | None = None
    top_k: _Size | None = None
    global_experts: _Size | None = None
    fully_sharded: bool = False
    shared_loras: bool = False

    @model_validator(mode="after")
    def _check_loras(self) -> LookUp:
        # The keys of experts have no slot for tokens without LoRA, their grids have.
        most = self.max_loras + (self.moe_intermediate_size is not None)
        if (self.active_loras or 0) > most:
            raise ValueError(
                f"active_loras must be at most {most}, with max_loras {self.max_loras}: "
                f"got {self.active_loras}"
            )
        return self

    @property
    def key(self) -> LookupKey:
        """The key under which vLLM looked it up."""
        outer = (self.max_loras, self.num_slices, self.batch)
        if self.moe_intermediate_size is not None:
            return MoeKey(*outer, self.rank, self.hidden_size, self.moe_intermediate_size)
        inner = (self.hidden_size, self.rank)
        return DenseKey(*outer, *(inner if self.op == LoraOp.SHRINK.value else inner[::-1]))

    @property
    def server_flags(self) -> set[str]:
        """The flags of the server that this look-up shows."""
        flags = {"dual_stream"} if self.op == "expand" and self.add_inputs is False else set()
        fewer = 0 < (self.active_loras or 0) < self.max_loras
        return flags | {"specialize_active_lora"} if fewer else flags

    def shape(self, everywhere: int | None, flags: Collection[str] = ()) -> KernelShape:
        """What was launched.

        Args:
            everywhere: Experts on all devices, where this look-up's caller did not know.
            flags: The server's, which any of its look-ups may have shown.

        Raises:
            ShapeError: autotune cannot launch it, or would look it up under another key.
        """
        dense = self.op in {LoraOp.SHRINK.value, LoraOp.EXPAND.value}
        if (
            self.op == LoraOp.SHRINK.value
            and self.num_slices == 1
            and self.rank not in RANKS_ON_GPU
        ):
            raise ShapeError(_CLASSIFIER)
        table = self._dense() if dense else self._of_experts(everywhere)
        shape = KernelShape.from_mapping(table | dict.fromkeys(flags, True))
        if shape.lookup_key != self.key:
            raise ShapeError(f"its tensors would be looked up as {key_text(shape.lookup_key)}")
        return shape

    @property
    def _launch(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "num_tokens": self.batch,
            "rank": self.rank,
            "hidden_size": self.hidden_size,
            "num_slices": self.num_slices,
            "max_loras": self.max_loras,
            "dtype": self.dtype,
        }

    def _dense(self) -> dict[str, Any]:
        # The key has a slot for tokens without LoRA. Where grids differ, the largest is tuned.
        table = {**self._launch, "max_loras": self.max_loras - 1}
        if self.op == LoraOp.EXPAND.value:
            table["add_inputs"] = self.add_inputs is not False
            table |= {"slice_sizes": [sizes[-2] for sizes in self.lora_b]} if self.lora_b else {}
        return table

    def _of_experts(self, everywhere: int | None) -> dict[str, Any]:
        if self.lora_a is None or self.lora_b is None or self.top_k is None:
            raise ShapeError("its tensors could not be seen")
        a, b, is_w13 = self.lora_a[0], self.lora_b[0], "_w13_" in self.op
        hidden, inner = (a[-1], b[-2]) if is_w13 else (b[-2], a[-1])
        shards = 1
        if self.fully_sharded:
            shards = max(1, b[-1] // a[-2] if is_w13 else self.hidden_size // b[-2])
        experts = max(a[1], b[1])
        return {
            **self._launch,
            "hidden_size": hidden if is_w13 else hidden * shards,
            "intermediate_size": inner,
            "top_k": self.top_k,
            "num_experts": experts,
            "fully_sharded": self.fully_sharded,
            "shared_loras": self.shared_loras,
            "shards": shards,
            "global_experts": self.global_experts or everywhere or experts,
        }

    @property
    def kind(self) -> tuple[object, ...]:
        """What says which kernel it is, whatever the batch size."""
        outer = (self.op, self.max_loras, self.num_slices, self.add_inputs)
        return *outer, self.rank, self.hidden_size, self.moe_intermediate_size

    def with_tensors_of(self, other: LookUp) -> LookUp:
        """The look-up with the tensors of another one of its kernel, where its own were unseen."""
        if self.lora_a or self.lora_b:
            return self
        return other.model_copy(update={"batch": self.batch})

    @property
    def layer(self) -> tuple[object, ...]:
        """What the ops of a MoE layer have in common, whichever knew its experts."""
        return self.max_loras, self.hidden_size, self.top_k, self.lora_a and self.lora_a[0][1]
