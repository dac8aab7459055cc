"""Experience: what searches may learn from older ones, thinned into one recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune.errors import InputError, RecordingError
from autotune.files import try_file
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.recording import RecordingWriter
from autotune.search.samplers.known import measured_shapes
from autotune.search.samplers.transfer import Neighbour, instructive

#: How many configurations of a shape are kept, and how many of these are the fastest. A search that
#: learned from 60 of these came nearer to the best than one that learned from 60 of all.
_MOST_KEPT, _FASTEST = 200, 100


def learn(
    sources: Sequence[str], output: Path, *, like: Environment | None = None
) -> Mapping[KernelShape, int]:
    """Write what a search learns from measurements into a recording.

    Of every shape it keeps the median latency of the configurations that a search learns from: the
    fastest, and an even sample of the others. Where two sources have the same shape, the later one
    counts.

    Args:
        sources: URLs of databases, and paths of recordings, all of one GPU and one kernel provider.
        output: The recording to write.
        like: Of sources of several GPUs or providers, those that are taken; None for all.

    Returns:
        How many configurations were kept of every shape.

    Raises:
        InputError: The sources hold no shape, or were measured on different GPUs or with kernels of
            different providers.
        StorageError: A database is missing or cannot be read.
        RecordingError: A recording is missing or cannot be read, or the output cannot be written.
    """
    try_file(output, RecordingError, advice="free the place, or name another file with -o")
    environments: dict[Environment, str] = {}
    shapes: dict[KernelShape, Mapping[KernelConfig, float]] = {}
    for source in sources:
        for environment, shape, measurements in measured_shapes(source):
            if like is not None and not environment.is_like(like):
                continue
            environments.setdefault(environment, source)
            kept = instructive(Neighbour(shape, measurements).timed, _MOST_KEPT, fastest=_FASTEST)
            # A deterministic study has seen a part of what another one of the shape has.
            if kept and not (environment.deterministic and shape in shapes):
                shapes[shape] = kept
    if not shapes:
        raise InputError(
            f"nothing to learn from: {', '.join(sources)} holds no shape that was timed"
        )
    first = next(iter(environments))
    for other, source in environments.items():
        if not other.is_like(first):
            raise InputError(
                f"{source} was measured on {other.gpu} with {other.provider} kernels, and "
                f"{environments[first]} on {first.gpu} with {first.provider} kernels; "
                "learn from each in a file of its own"
            )
    with RecordingWriter(output, first, measured_at="") as writer:
        for shape, latencies in shapes.items():
            for config, latency_us in latencies.items():
                measurement = Measurement(
                    shape=shape, config=config, outcome=Outcome.OK, samples_us=(latency_us,)
                )
                writer.write(measurement, is_default=False)
    return {shape: len(latencies) for shape, latencies in shapes.items()}
