"""The batch sizes of a server: those that vLLM captures in CUDA graphs, and those of prefill.

The defaults are ``EngineArgs.get_batch_defaults`` in ``vllm/engine/arg_utils.py``, of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autotune.errors import InputError, shown
from autotune.launch.release import NEWEST_RELEASE
from autotune.plan.captured import captured_sizes

#: The defaults of ``vllm serve`` on a GPU of 70 GiB and more, such as an H100. They are 2048 and
#: 256 on smaller GPUs and on every A100, 16384 and 1024 from 160 GiB on.
MAX_NUM_BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 1024

#: The largest of these defaults. A larger batch needs the server's flag.
_LARGEST_DEFAULT = 16_384

#: How many batch sizes a warning names.
_MOST_NAMED = 4

#: Tuned batch sizes are this factor apart, but for the last. They cannot be far apart: the best
#: configuration of one was seen to take up to ten times as long as the best of another, there.
_STEP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The limits of a server's batches, and the batch sizes that follow from them.

    Attributes:
        max_num_batched_tokens: The server's ``--max-num-batched-tokens``.
        max_num_seqs: The server's ``--max-num-seqs``.
        speculative_tokens: ``num_speculative_tokens`` of the server's ``--speculative-config``; 0
            without one. A sequence then decodes one token more than that in a step.
        cudagraph_capture_sizes: The server's flag of this name; None without.
        max_cudagraph_capture_size: The server's flag of this name; None without.
        release: vLLM's version.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    speculative_tokens: int = 0
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    max_cudagraph_capture_size: int | None = None
    release: str = NEWEST_RELEASE

    @classmethod
    def of(
        cls,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int | None = None,
        **others: Any,  # noqa: ANN401 - the other fields
    ) -> Batches:
        """The limits that are given, and vLLM's defaults for the others.

        Raises:
            InputError: vLLM would refuse them: a batch could not hold one token of every sequence,
                or no size is left to capture.
        """
        tokens = max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS
        seqs = max_num_seqs or min(MAX_NUM_SEQS, tokens)
        if tokens < seqs:
            raise InputError(
                f"max_num_batched_tokens must be at least max_num_seqs: got {tokens} for {seqs}"
            )
        batches = cls(max_num_batched_tokens=tokens, max_num_seqs=seqs, **others)
        batches._check()
        return batches

    def _check(self) -> None:
        given, most = self.cudagraph_capture_sizes, self.max_cudagraph_capture_size
        if given and most is not None and max(given) != most:
            raise InputError(
                f"max_cudagraph_capture_size must be the largest of cudagraph_capture_sizes, or be "
                f"left out: got {most} for {max(given)}"
            )
        if not self.captured:
            raise InputError(self._nothing_left())

    def _nothing_left(self) -> str:
        """Which limit leaves no batch size to capture, and what to do."""
        tokens, decoded = self.max_num_batched_tokens, 1 + self.speculative_tokens
        given, most = self.cudagraph_capture_sizes, self.max_cudagraph_capture_size
        each = f"speculative_tokens is {self.speculative_tokens}"
        if given and min(given) > tokens:
            return (
                f"cudagraph_capture_sizes must have a size of at most {tokens}, which is "
                f"max_num_batched_tokens: got {shown(list(given))}; give a smaller size, or leave "
                "it out"
            )
        if decoded > tokens:
            return (
                f"max_num_batched_tokens must be at least {decoded}, as {each}: got {tokens}; "
                "draft fewer tokens, or give a larger batch"
            )
        if given:
            return (
                f"cudagraph_capture_sizes must have a size of at least {decoded}, as {each}: "
                f"got {shown(list(given))}; give a larger size, or leave it out"
            )
        if most is not None and most < decoded:
            return (
                f"max_cudagraph_capture_size must be at least {decoded}, as {each}: got {most}; "
                "give a larger size, or leave it out"
            )
        return (
            f"no batch size is left to capture: got speculative_tokens {self.speculative_tokens} "
            f"with {tokens} tokens and {self.max_num_seqs} sequences a batch; draft fewer tokens, "
            "or raise max_num_seqs"
        )

    @property
    def most_sampled(self) -> int:
        """The most tokens that are sampled from in a step: all that a sequence decodes."""
        return min(self.max_num_seqs * (1 + self.speculative_tokens), self.max_num_batched_tokens)

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
        return captured_sizes(
            tokens=self.max_num_batched_tokens,
            seqs=self.max_num_seqs,
            query=1 + self.speculative_tokens,
            given=self.cudagraph_capture_sizes,
            most=self.max_cudagraph_capture_size,
            release=self.release,
        )

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
