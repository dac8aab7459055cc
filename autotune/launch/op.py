"""The LoRA ops, and where vLLM finds their tuned entries.

It states vLLM's contract: which parameters an op's entry must have, which file the entry is in, and
under which key vLLM looks it up. The source is
``vllm/lora/ops/triton_ops/utils.py`` (``load_lora_op_config``, ``get_lora_op_configs``), read in
vLLM 0.11.1, 0.15.1, 0.22.1, 0.28.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from typing import NamedTuple

#: What ``--max-lora-rank`` accepts (``vllm/config/lora.py``, 0.33.0).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: Parameters that a dense configuration may leave out, and the values that they then have.
PARAMETER_DEFAULTS = {"group_size_m": 8, "num_ctas": 1}

#: What vLLM takes for a parameter that a MoE entry leaves out.
MOE_DEFAULTS = {
    "block_m": 64,
    "block_n": 64,
    "block_k": 32,
    "split_k": 1,
    "group_size_m": 8,
    "num_warps": 4,
    "num_stages": 3,
}

_TILE = ("block_m", "block_n", "block_k")
_LAUNCH = ("num_warps", "num_stages", "num_ctas")


class DenseKey(NamedTuple):
    """The levels under which vLLM looks up a dense op's entry, outermost first.

    Attributes:
        max_loras: One more than vLLM is given: there is a slot for tokens without a LoRA.
        num_slices: Number of packed projections.
        m: Tokens in the batch.
        k: Size that is summed over.
        n: Size of the output.
    """

    max_loras: int
    num_slices: int
    m: int
    k: int
    n: int


class MoeKey(NamedTuple):
    """The levels under which vLLM looks up a MoE op's entry, outermost first.

    Attributes:
        max_loras: As given to vLLM.
        num_slices: Number of packed projections.
        m: Tokens in the batch.
        k: The rank, for all four ops.
        n: The model's hidden size, for all four ops.
        i: Intermediate size of the experts.
    """

    max_loras: int
    num_slices: int
    m: int
    k: int
    n: int
    i: int


#: The levels that vLLM goes down in a tuned file, or those that it really takes.
LookupKey = DenseKey | MoeKey


def key_of(levels: Iterable[int]) -> LookupKey:
    """The key with these levels, outermost first: five are a dense op's, six a MoE op's."""
    values = tuple(levels)
    return MoeKey(*values) if len(values) == len(MoeKey._fields) else DenseKey(*values)


def key_text(levels: Iterable[object]) -> str:
    """A key, or its outer levels, in messages and files: ``9/3/16/4096/16``."""
    return "/".join(map(str, levels))


class LoraOp(str, Enum):
    """One of vLLM's multi-LoRA kernels."""

    SHRINK = "shrink"
    EXPAND = "expand"
    W13_SHRINK = "fused_moe_lora_w13_shrink"
    W13_EXPAND = "fused_moe_lora_w13_expand"
    W2_SHRINK = "fused_moe_lora_w2_shrink"
    W2_EXPAND = "fused_moe_lora_w2_expand"

    @property
    def is_moe(self) -> bool:
        """Whether it is a kernel of a fused mixture of experts."""
        return self not in DENSE_OPS

    @property
    def parameters(self) -> tuple[str, ...]:
        """The launch parameters of this op, in the order in which they are written."""
        if self.is_moe:
            return tuple(MOE_DEFAULTS)
        if self is LoraOp.SHRINK:
            return (*_TILE, "split_k", "group_size_m", *_LAUNCH)
        return (*_TILE, *_LAUNCH)

    @property
    def required_parameters(self) -> tuple[str, ...]:
        """The parameters without which vLLM stops at the launch, with a ``KeyError``."""
        if self.is_moe:
            return ()
        return tuple(name for name in self.parameters if name != "group_size_m")

    @property
    def levels(self) -> tuple[str, ...]:
        """The names of the levels of keys above an entry, outermost first."""
        return MoeKey._fields if self.is_moe else DenseKey._fields

    def values_in(self, entry: Mapping[str, object]) -> dict[str, object]:
        """The values that vLLM reads from an entry, unchecked, by the names used here.

        A MoE entry may spell them in lower case, or as ``BLOCK_SIZE_M`` and ``NUM_WARPS``.
        """
        names = _spellings(self)
        return {names[key]: value for key, value in entry.items() if key in names}

    @property
    def file_suffixes(self) -> tuple[str, ...]:
        """The ends of its files' names; ``expand`` has one file for each ``add_inputs``."""
        name = f"_{self.value.upper()}"
        if self is LoraOp.EXPAND:
            return (f"{name}_TRUE.json", f"{name}_FALSE.json")
        return (f"{name}.json",)

    def file_name(self, gpu: str, *, add_inputs: bool) -> str:
        """The file that vLLM reads this op's entries from.

        Args:
            gpu: The GPU's name as ``torch.cuda.get_device_name()`` gives it.
            add_inputs: Whether ``expand`` adds to its output; other ops pay no attention to it.
        """
        suffix = self.file_suffixes[0 if add_inputs else -1]
        return f"{gpu_file_prefix(gpu)}{suffix}"

    def lookup_key(
        self,
        *,
        max_loras: int,
        num_slices: int,
        num_tokens: int,
        hidden_size: int,
        rank: int,
        intermediate_size: int = 0,
    ) -> LookupKey:
        """The levels that vLLM goes down in the file.

        For dense ops vLLM passes the length of ``lora_ids`` as ``max_loras``, which has a slot for
        tokens without a LoRA. All MoE ops have k = rank and n = the model's hidden size.

        Args:
            max_loras: As given to vLLM.
            num_slices: Number of packed projections.
            num_tokens: Tokens in the batch.
            hidden_size: ``shrink``: size of the input; ``expand``: size of the largest slice; MoE
                ops: the model's.
            rank: The server's ``--max-lora-rank``.
            intermediate_size: MoE ops: output size of a slice of w13, input size of w2.
        """
        if self.is_moe:
            return MoeKey(
                max_loras=max_loras,
                num_slices=num_slices,
                m=num_tokens,
                k=rank,
                n=hidden_size,
                i=intermediate_size,
            )
        k, n = (hidden_size, rank) if self is LoraOp.SHRINK else (rank, hidden_size)
        return DenseKey(max_loras=max_loras + 1, num_slices=num_slices, m=num_tokens, k=k, n=n)


@cache
def _spellings(op: LoraOp) -> dict[str, str]:
    """The names that an entry may have for an op's parameters, each with the one used here."""
    names = {name: name for name in op.parameters}
    if op.is_moe:
        names |= {name.upper().replace("BLOCK_", "BLOCK_SIZE_"): name for name in names}
    return names


#: The ops of ordinary linear layers.
DENSE_OPS = (LoraOp.SHRINK, LoraOp.EXPAND)

#: The ops of a mixture of experts, in the order in which a layer launches them.
MOE_OPS = tuple(op for op in LoraOp if op.is_moe)


def gpu_file_prefix(gpu: str) -> str:
    """The GPU's name as vLLM spells it in file names: spaces and hyphens become underscores."""
    return gpu.replace(" ", "_").replace("-", "_")
