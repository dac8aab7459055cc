"""Write the recording that searches know from the start, from larger recordings.

Of each recorded shape it keeps only the configurations that a search learns from.

    python studies/experience.py OUTPUT RECORDING...

``autotune/recordings/vllm_h100.jsonl.gz`` was made from these recordings. Those that searches are
judged by are left out:

    python studies/experience.py autotune/recordings/vllm_h100.jsonl.gz \
        studies/recordings/{narrowed,whole,model}_h100.jsonl.gz

Where two recordings have the same shape, the later one counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune.errors import AutotuneError
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.measure.recording import RecordingWriter, read_recording
from autotune.search.samplers.transfer import Neighbour, instructive


def write_experience(output: Path, paths: Sequence[Path]) -> None:
    """Write a recording of the median latencies that a search learns from.

    Args:
        output: The recording to write.
        paths: The recordings to read, all of one environment.
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
    """Read the command line and write the recording."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="recording to write")
    parser.add_argument("recordings", type=Path, nargs="+", help="recordings of one environment")
    given = parser.parse_args()
    write_experience(given.output, given.recordings)


if __name__ == "__main__":
    try:
        main()
    except AutotuneError as error:
        sys.exit(f"error: {error}")
