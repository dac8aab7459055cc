"""The batch sizes of a server: those that vLLM captures in CUDA graphs, and those of prefill.

The rule is ``VllmConfig._set_cudagraph_sizes`` in ``vllm/config/vllm.py``, the defaults are
``EngineArgs.get_batch_defaults`` in ``vllm/engine/arg_utils.py``, both of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from autotune.errors import InputError

#: The defaults of ``vllm serve`` on a GPU of 70 GiB and more, such as an H100. They are 2048 and
#: 256 on smaller GPUs and on every A100, 16384 and 1024 from 160 GiB on.
MAX_NUM_BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 1024

#: The largest of these defaults. A larger batch needs the server's flag.
_LARGEST_DEFAULT = 16_384

#: How many batch sizes a warning names.
_MOST_NAMED = 4

#: The largest batch that vLLM captures, whatever ``max_num_seqs`` is (1024 on Blackwell).
_LARGEST_CAPTURED = 512

#: Tuned batch sizes are this factor apart, but for the last. They cannot be far apart: the best
#: configuration of one was seen to take up to ten times as long as the best of another, there.
_STEP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The limits of a server's batches, and the batch sizes that follow from them.

    Attributes:
        max_num_batched_tokens: The server's ``--max-num-batched-tokens``.
        max_num_seqs: The server's ``--max-num-seqs``.
    """

    max_num_batched_tokens: int
    max_num_seqs: int

    @classmethod
    def of(
        cls, max_num_batched_tokens: int | None = None, max_num_seqs: int | None = None
    ) -> Batches:
        """The limits that are given, and vLLM's defaults for the others.

        Raises:
            InputError: A batch could not hold one token of every sequence, which vLLM refuses.
        """
        tokens = max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS
        seqs = max_num_seqs or min(MAX_NUM_SEQS, tokens)
        if tokens < seqs:
            raise InputError(
                f"max_num_batched_tokens must be at least max_num_seqs: got {tokens} for {seqs}"
            )
        return cls(max_num_batched_tokens=tokens, max_num_seqs=seqs)

    def notes(self, counts: Iterable[int]) -> list[str]:
        """A warning about batch sizes that no server has, if there are any.

        Args:
            counts: The batch sizes to tune.
        """
        most = max(self.max_num_batched_tokens, _LARGEST_DEFAULT)
        beyond = sorted({count for count in counts if count > most})
        if not beyond:
            return []
        sizes = ", ".join(map(str, beyond[:_MOST_NAMED])) + (" ..." if beyond[_MOST_NAMED:] else "")
        warning = (
            f"warning: no server has a batch of {sizes} tokens, but one whose "
            f"--max-num-batched-tokens is above {most}: leave them out, or give its value"
        )
        return [warning]

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that vLLM captures; it pads a decoding batch to the next of them."""
        most = min(2 * self.max_num_seqs, _LARGEST_CAPTURED, self.max_num_batched_tokens)
        sizes = [1, 2, 4, *range(8, 256, 8), *range(256, _LARGEST_CAPTURED + 1, 16)]
        ends = {self.max_num_batched_tokens, self.max_num_seqs}
        return tuple(sorted(size for size in {*sizes, *ends} if size <= most))

    @property
    def grid(self) -> tuple[int, ...]:
        """The batch sizes to tune: captured sizes, thinned, then up to the largest prefill step."""
        captured = thinned(self.captured)
        return tuple(doubled([*captured, self.max_num_batched_tokens], after=captured[-1]))


def thinned(sizes: Iterable[int]) -> list[int]:
    """Ascending numbers without those too near the one before; the first and the last are kept."""
    ordered = list(sizes)
    kept = ordered[:1]
    for size in ordered:
        if size >= kept[-1] * _STEP:
            kept.append(size)
    return list(dict.fromkeys([*kept, *ordered[-1:]]))


def doubled(sizes: Iterable[int], *, after: int) -> list[int]:
    """Ascending numbers, and doublings of ``after``, one of them, up to the largest."""
    ordered = list(sizes)
    more = [after]
    while more[-1] * _STEP <= ordered[-1]:
        more.append(more[-1] * _STEP)
    return sorted({*ordered, *more})
