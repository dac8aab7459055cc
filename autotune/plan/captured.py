"""The batch sizes that a release of vLLM captures in CUDA graphs.

The rule is ``VllmConfig._set_cudagraph_sizes`` in ``vllm/config/vllm.py``, and with speculative
decoding ``adjust_cudagraph_sizes_for_spec_decode`` in ``vllm/config/compilation.py`` as well, or
from 0.33 on ``_init_candidates`` in ``vllm/v1/worker/gpu/cudagraph_utils.py``: all read in 0.11.1,
0.15.1, 0.22.1, 0.28.0 and 0.33.0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from autotune.launch.release import is_since

#: The largest batch that vLLM captures by itself (1024 on Blackwell from 0.28 on).
_LARGEST = 512

#: The first releases of which the largest size grows with the tokens that a sequence decodes, of
#: which the largest batch there is has a graph, and of which the largest batch of decoding has one.
_GROWS, _HAS_LARGEST, _HAS_DECODING = "0.15", "0.22", "0.33"


def captured_sizes(
    *,
    tokens: int,
    seqs: int,
    query: int,
    given: Collection[int] | None,
    most: int | None,
    release: str,
) -> tuple[int, ...]:
    """The batch sizes, ascending.

    Args:
        tokens: ``--max-num-batched-tokens``.
        seqs: ``--max-num-seqs``.
        query: Tokens that a sequence decodes in a step: 1, and one for each drafted token.
        given: ``--cudagraph-capture-sizes``; None without.
        most: ``--max-cudagraph-capture-size``; None without.
        release: vLLM's version.
    """
    counted = query if is_since(release, _GROWS) else 1
    largest = min(most or min(2 * seqs * counted, _LARGEST), tokens)
    if given is not None:
        sizes = {size for size in given if size <= tokens}
    else:
        sizes = set(_up_to(largest))
        if is_since(release, _HAS_LARGEST) and tokens <= largest:
            sizes.add(tokens)
        if is_since(release, _HAS_DECODING) and most is None:
            sizes |= _of_decoding(seqs, query, min(largest, tokens))
    if query > 1:
        return _for_drafts(sizes, seqs, query, release)
    return tuple(sorted(sizes))


def _up_to(largest: int) -> Iterable[int]:
    """1, 2, 4, every 8th size to 256 and every 16th beyond."""
    sizes = (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16))
    return (size for size in sizes if size <= largest)


def _of_decoding(seqs: int, query: int, largest: int) -> set[int]:
    """Sizes of batches in which every sequence decodes."""
    counts = [seqs] if query == 1 else [*_up_to(min(seqs, _LARGEST)), min(seqs, _LARGEST)]
    return {count * query for count in counts if count * query <= largest}


def _for_drafts(sizes: Collection[int], seqs: int, query: int, release: str) -> tuple[int, ...]:
    """Sizes that hold whole sequences with their drafted tokens."""
    largest = max(sizes, default=0)
    rounded = {-(-size // query) * query for size in sizes}
    if is_since(release, _HAS_DECODING):  # those sizes for decoding, the others for the rest
        whole = {size for size in rounded if size <= min(largest, seqs * query)}
        return tuple(sorted({*sizes, *whole}))
    kept = {size for size in rounded if size <= largest}
    if not kept and not is_since(release, _GROWS):
        kept = set(sizes)
    elif not kept and query <= largest:
        kept = {query}
    return tuple(sorted(kept))
