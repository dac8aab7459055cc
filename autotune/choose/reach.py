"""Which ``block_m`` the next trial of a MoE op is for.

A MoE layer's ops are tuned one by one, and get the one ``block_m`` at which their sum is smallest.
So an op's study must know its best latency at every ``block_m`` that the layer may end up with, not
only at the one that is best for the op alone, where a sampler would spend nearly all its trials.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: How far above the op's best a ``block_m`` may be and still be searched. An op of four that take
#: alike long may be a quarter slower and be made up for by 8 % on the others, which is what a good
#: ``block_m`` is worth there; beyond that it takes more than the others have to give.
REACH = 1.25

#: Trials after which a ``block_m`` can be out of reach. With fewer its best is luck: of 15 random
#: configurations one lies among the best 18 % nineteen times in twenty, and of 10 among the best
#: 26 %. Five values of ``block_m`` take 75 of the usual 200 trials until then.
ENOUGH_TRIALS = 15


def in_reach(tried: Mapping[int, int], best_us: Mapping[int, float]) -> set[int]:
    """Every ``block_m`` that is not clearly worse than the best one.

    Args:
        tried: Per ``block_m`` of the space the configurations tried.
        best_us: Per ``block_m`` the lowest latency, microseconds; none where nothing has run.
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
    """The ``block_m`` in reach that has had the fewest trials; None where any will do.

    Args:
        left: Those that have untried configurations.
        tried: As for ``in_reach``; those under way count.
        best_us: As for ``in_reach``.
    """
    reachable = in_reach(tried, best_us).intersection(left)
    return min(reachable, key=lambda block_m: (tried[block_m], block_m), default=None)
