"""The batch sizes that a server launches a kernel at before its first request, and afterwards.

vLLM launches at its start what it captures in CUDA graphs, and one step of
``max_num_batched_tokens``. Batches up to the largest graph are padded to a graph, whose replay
launches no kernel by itself. What is launched later is a step beyond the graphs, and what runs over
sampled tokens, at any size. Its kernel is compiled then if nothing launched that very one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

#: Of so many batch sizes in a row each kind that Triton tells apart is one: multiples of 16, and
#: others.
_EVERY_KIND = 16


@dataclass(frozen=True, slots=True)
class WarmedSizes:
    """The batch sizes of one kernel in a server.

    Attributes:
        warmed: Those at which it is launched before the first request, ascending.
        later: Those at which it may be launched afterwards.
    """

    warmed: tuple[int, ...]
    later: tuple[range, ...]

    def later_of_rows(self, rows: Iterable[int]) -> Mapping[int, list[int]]:
        """For each row batch sizes that are launched later and take it, of every kind.

        vLLM takes the nearest row. Rows that no later size takes are left out. Of a long stretch
        only both ends are given: the kernels between are those of the ends.

        Args:
            rows: The batch sizes that have a row; at least one.
        """
        ordered = sorted(set(rows))
        # The first batch size that takes the next row: a tie goes to the smaller one.
        firsts = [(low + high) // 2 + 1 for low, high in pairwise(ordered)]
        found: dict[int, set[int]] = {}
        for sizes in self.later:
            bounds = [sizes.start, *(min(max(n, sizes.start), sizes.stop) for n in firsts)]
            for row, (low, high) in zip(ordered, pairwise([*bounds, sizes.stop]), strict=True):
                found.setdefault(row, set()).update(_both_ends(range(low, high)))
        return {row: sorted(those) for row, those in found.items() if those}


def _both_ends(sizes: range) -> Iterable[int]:
    return (*sizes[:_EVERY_KIND], *sizes[-_EVERY_KIND:])
