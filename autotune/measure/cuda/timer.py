"""Timing launches on a CUDA device: graph replays over rotating weight sets, from a cold cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: A sample need not last longer, microseconds: the timer resolves half a microsecond.
_LONG_SAMPLE_US = 500.0

#: Launches of a sample, at the least.
_FEWEST_LAUNCHES = 4

#: What takes so long outside a graph is not launched 15 times to see how long it takes inside one.
#: Far beyond what the host adds to a launch, some 300 µs at most.
_SLOW_US = 1000.0

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
    the graph as well: what the host takes to start it is no part of a sample. One launch lies ahead
    of them and fetches the kernel's code; without it, samples of few launches read up to 0.9 µs
    higher than long ones (H100).
    """

    def __init__(
        self, launch: Callable[[int], None], *, weight_sets: int, flush: CacheFlush
    ) -> None:
        """Capture the graph, and replay it once to warm up.

        Args:
            launch: Enqueues the op with the weight set of that number on the current stream. It
                has been launched before, so that nothing is left to load.
            weight_sets: How many sets there are to rotate over; the last is not timed, if there
                are others.
            flush: Empties the cache.

        Raises:
            RuntimeError: The launch cannot be captured, or fails.
        """
        self._flush, self._launch, self._unmeasured = flush, launch, weight_sets - 1
        self._start, self._end = _event(external=True), _event(external=True)
        most = max(1, weight_sets - 1)
        fewest = min(_FEWEST_LAUNCHES, most)
        self._capture(fewest if _eager_us(launch) > _SLOW_US else most)
        enough = max(fewest, int(_LONG_SAMPLE_US / max(self.sample_us(), 1.0)))
        if enough < self._launches // 2:
            self._capture(enough)
            self.sample_us()

    def _capture(self, launches: int) -> None:
        """Make a graph that times so many launches."""
        self._launches = launches
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            self._graph.capture_begin()
            try:
                self._launch(self._unmeasured)
                self._start.record()
                for number in range(launches):
                    self._launch(number)
                self._end.record()
            finally:
                self._graph.capture_end()

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


def _eager_us(launch: Callable[[int], None]) -> float:
    """What one launch takes outside a graph, microseconds; for a short one that is the host's."""
    start, end = _event(), _event()
    start.record()
    launch(0)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000
