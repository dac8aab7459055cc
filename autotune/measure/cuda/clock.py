"""Timing launches on a CUDA device: graph replays over rotating weight sets, from a cold cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: A sample needs to last no longer than this, microseconds: CUDA events resolve 0.5 µs.
_LONG_SAMPLE_US = 500.0

#: A sample times at least this many launches, if there are enough weight sets.
_FEWEST_LAUNCHES = 4

#: A launch that takes longer than this outside a graph gets a small graph at once, microseconds.
#: The host adds some 300 µs to a launch at most, so this one is slow on the device.
_SLOW_US = 1000.0

#: Size of the buffer that is read to empty the L2 cache, in multiples of the cache.
_FLUSH_FACTOR = 2


class CacheFlush:
    """Empties the L2 cache by reading a buffer.

    Reading, not writing: written lines would be carried to memory while the kernel is timed.
    """

    def __init__(self, l2_bytes: int) -> None:
        elements = _FLUSH_FACTOR * l2_bytes // 4
        self._buffer = torch.ones(elements, dtype=torch.float32, device="cuda")  # (elements,)
        self._sum = torch.empty((), dtype=torch.float32, device="cuda")  # ()

    def __call__(self) -> None:
        """Enqueue the reading on the current stream."""
        torch.sum(self._buffer, dim=0, out=self._sum)


class LaunchClock:
    """Times one launch by replaying a CUDA graph of many.

    Each launch of the graph reads its own weight set, and the cache is emptied before every replay.
    So weights come from device memory, as they do when a stack of layers is run. The events that
    time the launches are part of the graph: a sample leaves out what the host takes to start the
    graph. One more launch comes before the first event, to fetch the kernel's code. Without it,
    samples of few launches were up to 0.9 µs higher than long ones (H100).
    """

    def __init__(
        self, launch: Callable[[int], None], *, weight_sets: int, flush: CacheFlush
    ) -> None:
        """Capture the graph, and replay it once to warm up.

        Args:
            launch: Enqueues the op with the weight set of that number on the current stream. It
                has been launched before, so that the kernel is loaded.
            weight_sets: How many sets there are to rotate over. The last one is not timed, unless
                it is the only one.
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
        """Make a graph that times this many launches."""
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
    """An event with a time; an external one keeps its time when it is captured in a graph."""
    return torch.cuda.Event(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        enable_timing=True, external=external
    )


def _eager_us(launch: Callable[[int], None]) -> float:
    """Time of one launch outside a graph, microseconds; for a short kernel it is the host's."""
    start, end = _event(), _event()
    start.record()
    launch(0)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000
