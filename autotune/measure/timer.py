"""Timing launches on a CUDA device: graph replays over rotating weight sets, from a cold cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

#: A sample need not last longer, microseconds: the timer resolves half a microsecond.
_LONG_SAMPLE_US = 500.0

#: Launches of a sample, at the least.
_FEWEST_LAUNCHES = 4

#: Flushes ahead of a launch that is timed outside a graph: while the device works on them, some
#: 40 µs each (H100), the host enqueues the launch, for which vLLM's wrappers take 200 µs. Without
#: them it is the host that is timed.
_HEAD_START = 8

#: How often a launch is timed before it counts as long.
_TRIES = 3

#: The buffer that is read to empty the L2 cache, in multiples of its size.
_FLUSH_FACTOR = 2


class CacheFlush:
    """Empties the L2 cache by reading something else.

    Reading, not writing: written lines would be carried to memory while the kernel is timed.
    """

    def __init__(self, l2_bytes: int) -> None:
        elements = _FLUSH_FACTOR * l2_bytes // 4
        self._buffer = torch.ones(elements, dtype=torch.float32, device="cuda")  # (elements,)
        self._sum = torch.empty((), dtype=torch.float32, device="cuda")  # ()

    def __call__(self) -> None:
        """Enqueue the reading on the current stream."""
        torch.sum(self._buffer, dim=0, out=self._sum)


class LaunchTimer:
    """Times one launch by replaying a CUDA graph of many.

    Each launch of the graph reads its own weight set, and the cache is emptied before every replay,
    so weights come from device memory, as they do when a stack of layers is run. The events lie in
    the graph as well: what the host takes to start it is no part of a sample.
    """

    def __init__(
        self, launch: Callable[[int], None], *, weight_sets: int, flush: CacheFlush
    ) -> None:
        """Capture the graph, and replay it once to warm up.

        Args:
            launch: Enqueues the op with the weight set of that number on the current stream. It
                has been launched before, so that nothing is left to load.
            weight_sets: How many sets there are to rotate over.
            flush: Empties the cache.

        Raises:
            RuntimeError: The launch cannot be captured, or fails.
        """
        self._flush = flush
        self._launches = _launches(launch, weight_sets, flush)
        self._start, self._end = _event(external=True), _event(external=True)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            self._graph.capture_begin()
            try:
                self._start.record()
                for number in range(self._launches):
                    launch(number)
                self._end.record()
            finally:
                self._graph.capture_end()
        self.sample_us()

    def sample_us(self) -> float:
        """Take one sample, microseconds per launch."""
        self._flush()
        self._graph.replay()
        torch.cuda.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1000 / self._launches

    def samples_us(self, count: int) -> list[float]:
        """Take samples, microseconds per launch."""
        return [self.sample_us() for _ in range(count)]


def _event(*, external: bool = False) -> torch.cuda.Event:
    """An event with a time; an external one keeps it when it is captured in a graph."""
    return torch.cuda.Event(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        enable_timing=True, external=external
    )


def _launches(launch: Callable[[int], None], weight_sets: int, flush: CacheFlush) -> int:
    """How many launches one sample holds: all the weight sets, if that does not take too long.

    A host that is held up makes a launch seem long, never short: what seems long is tried again.
    """
    shortest_us = math.inf
    for _ in range(_TRIES):
        shortest_us = min(shortest_us, _eager_us(launch, flush))
        launches = max(_FEWEST_LAUNCHES, int(_LONG_SAMPLE_US / max(shortest_us, 1.0)))
        if launches >= weight_sets:
            break
    return min(weight_sets, launches)


def _eager_us(launch: Callable[[int], None], flush: CacheFlush) -> float:
    """What one launch takes, roughly, microseconds."""
    start, end = _event(), _event()
    for _ in range(_HEAD_START):
        flush()
    start.record()
    launch(0)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000
