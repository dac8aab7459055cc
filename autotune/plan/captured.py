"""The batch sizes that a release of vLLM captures in CUDA graphs.

The rule is ``VllmConfig._set_cudagraph_sizes`` in ``vllm/config/vllm.py``, and with speculative
decoding ``adjust_cudagraph_sizes_for_spec_decode`` in ``vllm/config/compilation.py`` as well, or
from 0.29 on ``_init_candidates`` in ``vllm/v1/worker/gpu/cudagraph_utils.py``: all read in every
release from 0.11.1 to 0.33.0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from autotune.launch.release import is_since

#: The largest batch that vLLM captures by itself (1024 on Blackwell from 0.28 on).
_LARGEST = 512

#: The first releases of which the largest size grows with the tokens that a sequence decodes, and
#: of which the largest batch there is has a graph.
_GROWS, _HAS_LARGEST = "0.13", "0.20.1"

#: The first releases of which one sequence with its drafted tokens has a graph if nothing else
#: fits, and of which batches of decoding have graphs of their own with drafted tokens, and without.
_ROUNDS_DOWN, _HAS_DRAFTS, _HAS_DECODING = "0.12", "0.29", "0.31"


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
        if is_since(release, _HAS_DRAFTS if query > 1 else _HAS_DECODING) and most is None:
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
    if is_since(release, _HAS_DRAFTS):  # those sizes for decoding, the others for the rest
        whole = {size for size in rounded if size <= min(largest, seqs * query)}
        return tuple(sorted({*sizes, *whole}))
    kept = {size for size in rounded if size <= largest}
    if not kept and not is_since(release, _ROUNDS_DOWN):
        kept = set(sizes)
    elif not kept and query <= largest:
        kept = {query}
    return tuple(sorted(kept))
