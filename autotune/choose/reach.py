"""Which ``block_m`` the next trial of a MoE op is for.

A MoE layer's ops are searched one by one, and then get the one ``block_m`` at which the sum of
their latencies is smallest. So a search must find the op's best latency at every ``block_m`` that
the layer may end up with. A sampler alone would spend nearly all trials at the ``block_m`` that is
best for the op itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: A ``block_m`` is searched while its best latency is below the op's best times this. Of four ops
#: that take equally long, one may be a quarter slower if the others gain 8 % each, which is about
#: what a good ``block_m`` gains them. What is slower still costs more than the others can gain.
REACH = 1.25

#: Trials that every ``block_m`` gets before it can be out of reach. After fewer trials its best
#: latency is luck: nineteen times in twenty, the best of 15 random configurations is among the best
#: 18 % of all, and the best of 10 among the best 26 %. For five values of ``block_m`` that is 75 of
#: the usual 200 trials.
ENOUGH_TRIALS = 15


def in_reach(tried: Mapping[int, int], best_us: Mapping[int, float]) -> set[int]:
    """Every ``block_m`` that is not clearly slower than the best one.

    Args:
        tried: For every ``block_m`` of the space, how many configurations were tried.
        best_us: For every ``block_m`` that ran, the lowest latency, microseconds.
    """
    limit_us = REACH * min(best_us.values(), default=float("inf"))
    return {
        block_m
        for block_m, count in tried.items()
        if count < ENOUGH_TRIALS or best_us.get(block_m, float("inf")) <= limit_us
    }


def next_block_m(
    left: Collection[int], tried: Mapping[int, int], best_us: Mapping[int, float]
) -> int | None:
    """The ``block_m`` in reach that has had the fewest trials; None where none is left.

    Args:
        left: The values of ``block_m`` that have untried configurations.
        tried: As for ``in_reach``; configurations under way count.
        best_us: As for ``in_reach``.
    """
    reachable = in_reach(tried, best_us).intersection(left)
    return min(reachable, key=lambda block_m: (tried[block_m], block_m), default=None)
