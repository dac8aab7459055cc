"""Writes what searches know from the start: of recorded shapes the part that is learned from.

    python studies/experience.py OUTPUT RECORDING...

``autotune/recordings/vllm_h100.jsonl.gz`` was made from ``recordings/``, but those for judging:

    python studies/experience.py autotune/recordings/vllm_h100.jsonl.gz \
        studies/recordings/{narrowed,whole,model}_h100.jsonl.gz

Of a shape that two of them have, the later one counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.recording import RecordingWriter, read_recording
from autotune.search.samplers.transfer import Neighbour, instructive


def write_experience(output: Path, paths: Sequence[Path]) -> None:
    """Write a recording of the medians that a search learns from.

    Args:
        output: The recording to write.
        paths: Recordings of one environment.
    """
    recordings = [read_recording(path) for path in paths]
    shapes: dict[KernelShape, dict[KernelConfig, float]] = {}
    for recording in recordings:
        for shape, measurements in recording.shapes.items():
            shapes[shape] = instructive(Neighbour(shape, tuple(measurements.values())).timed)
    with RecordingWriter(output, recordings[0].environment) as writer:
        for shape, latencies in shapes.items():
            for config, latency_us in latencies.items():
                measurement = Measurement(
                    shape=shape, config=config, outcome=Outcome.OK, samples_us=(latency_us,)
                )
                writer.write(measurement, is_default=False)


def main() -> None:
    """Write what the command line asks for."""
    output, *paths = map(Path, sys.argv[1:])
    write_experience(output, paths)


if __name__ == "__main__":
    main()
