"""The batch sizes of a server: those that vLLM captures in CUDA graphs, and those of prefill.

The rule is ``VllmConfig._set_cudagraph_sizes`` in ``vllm/config/vllm.py``, the defaults are
``EngineArgs.get_batch_defaults`` in ``vllm/engine/arg_utils.py``, both of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autotune.errors import InputError

#: What ``vllm serve`` takes on a GPU of 70 GiB and more, such as an H100, and no A100; it is 2048
#: and 256 on smaller ones and A100s, 16384 and 1024 from 160 GiB on.
MAX_NUM_BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 1024

#: The largest batch that is captured, however many sequences there may be (1024 on Blackwell).
_LARGEST_CAPTURED = 512

#: Tuned batch sizes are this far apart: a best configuration was seen to be up to ten times slower
#: than another batch size's own.
_STEP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Limits of a server's batches.

    Attributes:
        max_num_batched_tokens: The server's ``--max-num-batched-tokens``.
        max_num_seqs: Its ``--max-num-seqs``.
    """

    max_num_batched_tokens: int
    max_num_seqs: int

    @classmethod
    def of(
        cls, max_num_batched_tokens: int | None = None, max_num_seqs: int | None = None
    ) -> Batches:
        """The limits given, else vLLM's defaults.

        Raises:
            InputError: vLLM would refuse them.
        """
        tokens = max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS
        seqs = max_num_seqs or min(MAX_NUM_SEQS, tokens)
        if tokens < seqs:
            raise InputError(
                f"max_num_batched_tokens must be at least max_num_seqs: got {tokens} for {seqs}"
            )
        return cls(max_num_batched_tokens=tokens, max_num_seqs=seqs)

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that vLLM captures; what it decodes is padded to the next of them."""
        most = min(2 * self.max_num_seqs, _LARGEST_CAPTURED, self.max_num_batched_tokens)
        sizes = [1, 2, 4, *range(8, 256, 8), *range(256, _LARGEST_CAPTURED + 1, 16)]
        ends = {self.max_num_batched_tokens, self.max_num_seqs}
        return tuple(sorted(size for size in {*sizes, *ends} if size <= most))

    @property
    def grid(self) -> tuple[int, ...]:
        """The batch sizes to tune: captured ones thinned, and on to the largest prefill step."""
        sizes = thinned(self.captured)
        while sizes[-1] * _STEP <= self.max_num_batched_tokens:
            sizes.append(sizes[-1] * _STEP)
        return tuple(dict.fromkeys([*sizes, self.max_num_batched_tokens]))


def thinned(sizes: Iterable[int]) -> list[int]:
    """Of some ascending numbers those that are far enough apart, the first and the last one too."""
    ordered = list(sizes)
    kept = ordered[:1]
    for size in ordered:
        if size >= kept[-1] * _STEP:
            kept.append(size)
    return list(dict.fromkeys([*kept, *ordered[-1:]]))
