"""Timing launches on a CUDA device: graph replays over rotating weight sets, from a cold cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

#: A sample need not last longer, microseconds: the timer resolves half a microsecond.
_LONG_SAMPLE_US = 500.0

#: Launches of a sample, at the least: the gap before the first is part of it.
_FEWEST_LAUNCHES = 4

#: Flushes ahead of the first sample. The device works on them while the host enqueues the sample;
#: without them the first of five samples of a 5 µs kernel came out 10 % high (H100).
_HEAD_START = 4

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
    so weights come from device memory, as they do when a stack of layers is run.
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
        self._launches = _launches(_eager_us(launch), weight_sets)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            self._graph.capture_begin()
            try:
                for number in range(self._launches):
                    launch(number)
            finally:
                self._graph.capture_end()
        sample_in_turn([self], flush)

    def samples_us(self, count: int) -> list[float]:
        """Take samples, microseconds per launch."""
        return sample_in_turn([self] * count, self._flush)

    def enqueue(self, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        """Enqueue one sample between two events."""
        start.record()
        self._graph.replay()
        end.record()

    def sample_us(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Microseconds per launch of a sample that has run."""
        return float(start.elapsed_time(end)) * 1000 / self._launches


def sample_in_turn(timers: Sequence[LaunchTimer], flush: CacheFlush) -> list[float]:
    """Take one sample of each timer in the order given, each from a cold cache.

    Returns:
        Microseconds per launch.
    """
    events = [_events() for _ in timers]
    for _ in range(_HEAD_START):
        flush()
    for timer, (start, end) in zip(timers, events, strict=True):
        flush()
        timer.enqueue(start, end)
    torch.cuda.synchronize()
    return [timer.sample_us(start, end) for timer, (start, end) in zip(timers, events, strict=True)]


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for _ in range(2)
    )
    return start, end


def _eager_us(launch: Callable[[int], None]) -> float:
    """What one launch takes, roughly, microseconds."""
    start, end = _events()
    start.record()
    launch(0)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


def _launches(launch_us: float, weight_sets: int) -> int:
    """How many launches one sample holds."""
    enough = max(_FEWEST_LAUNCHES, int(_LONG_SAMPLE_US / max(launch_us, 1.0)))
    return min(weight_sets, enough)
