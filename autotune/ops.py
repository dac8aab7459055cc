"""The LoRA ops that are tuned, and what vLLM calls them.

This module is the home of vLLM's contract: which parameters an op's entry must have, which file
the entry is in, and under which keys vLLM looks it up. The source is
``vllm/lora/ops/triton_ops/utils.py`` (``load_lora_op_config``, ``get_lora_op_configs``), read in
vLLM 0.11.1, 0.15.1, 0.22.1, 0.28.0 and 0.33.0.
"""

from __future__ import annotations

from enum import Enum

#: What ``--max-lora-rank`` accepts (``vllm/config/lora.py``, 0.33.0).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: Parameters that an entry may leave out, and what vLLM then takes.
PARAMETER_DEFAULTS = {"group_size_m": 8, "num_ctas": 1}

_TILE = ("block_m", "block_n", "block_k")
_LAUNCH = ("num_warps", "num_stages", "num_ctas")


class LoraOp(str, Enum):
    """One of vLLM's multi-LoRA kernels."""

    SHRINK = "shrink"
    EXPAND = "expand"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The launch parameters of this op, in the order in which they are written."""
        if self is LoraOp.SHRINK:
            return (*_TILE, "split_k", "group_size_m", *_LAUNCH)
        return (*_TILE, *_LAUNCH)

    def file_name(self, gpu: str, *, add_inputs: bool) -> str:
        """The file that vLLM reads this op's entries from.

        Args:
            gpu: The GPU's name as ``torch.cuda.get_device_name()`` gives it.
            add_inputs: Whether ``expand`` adds to its output; other ops do not look at it.
        """
        suffix = f"_{str(add_inputs).upper()}" if self is LoraOp.EXPAND else ""
        return f"{gpu_file_prefix(gpu)}_{self.value.upper()}{suffix}.json"

    def lookup_key(
        self, *, max_loras: int, num_slices: int, num_tokens: int, hidden_size: int, rank: int
    ) -> tuple[int, ...]:
        """The keys that vLLM goes down in the file, outermost first.

        The first is ``max_loras + 1``: vLLM passes the length of ``lora_ids``, which has a slot
        for tokens without a LoRA.

        Args:
            max_loras: As given to vLLM.
            num_slices: Number of packed projections.
            num_tokens: Tokens in the batch.
            hidden_size: ``shrink``: size of the input; ``expand``: size of the largest slice.
            rank: The server's ``--max-lora-rank``.
        """
        k, n = (hidden_size, rank) if self is LoraOp.SHRINK else (rank, hidden_size)
        return (max_loras + 1, num_slices, num_tokens, k, n)


def gpu_file_prefix(gpu: str) -> str:
    """The GPU's name as vLLM spells it in file names: spaces and hyphens become underscores."""
    return gpu.replace(" ", "_").replace("-", "_")
