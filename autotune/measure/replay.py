"""A Runner that answers from recordings, with no GPU."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autotune.errors import RecordingError, ReplayMiss
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure._base import EnoughRule, Runner, StopRule
from autotune.measure.measurement import Ceilings, Comparison, Measurement, Outcome, Replayed
from autotune.measure.racing import TOO_SLOW_REASON, race, take_from
from autotune.measure.recording import read_recording

#: Samples of a configuration in a comparison. Timing on a GPU takes fewer; a recording may hold any
#: number, and an interval of the ratio takes memory for 2,000 times as many.
_MOST_COMPARED = 1_000


class ReplayRunner(Runner):
    """Answers from recordings of one environment.

    The search space of a shape is its recorded configurations; any other is a ``ReplayMiss``.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read recordings.

        Raises:
            RecordingError: A recording cannot be read, two have the same shape, or they come from
                different environments.
        """
        recordings = [read_recording(path) for path in paths]
        self.environment = recordings[0].environment
        self._ceilings = next((each.ceilings for each in recordings if each.ceilings), None)
        days = sorted({each.measured_at for each in recordings} - {""})
        self._replayed = Replayed(
            recordings=tuple(path.name for path in paths),
            measured_at=" to ".join(dict.fromkeys((*days[:1], *days[-1:]))),
        )
        self._shapes: dict[KernelShape, Mapping[KernelConfig, Measurement]] = {}
        self._defaults: dict[KernelShape, KernelConfig] = {}
        for path, recording in zip(paths, recordings, strict=True):
            difference = recording.environment.difference(self.environment)
            if difference:
                raise RecordingError(
                    f"{path} was not measured where {paths[0]} was ({difference}); "
                    "replay them one at a time"
                )
            for shape, by_config in recording.shapes.items():
                if shape in self._shapes:
                    raise RecordingError(
                        f"{path} repeats {shape.op.value} {shape.label}; leave one recording out"
                    )
                self._shapes[shape] = by_config
            self._defaults.update(recording.defaults)

    def named(self, device: str) -> ReplayRunner:
        """Another runner that answers from what this one has read, with a name of its own."""
        other = copy.copy(self)
        other.device = device
        return other

    @property
    def shapes(self) -> tuple[KernelShape, ...]:
        """The recorded shapes, in the order of the recordings."""
        return tuple(self._shapes)

    @property
    def answered(self) -> Collection[KernelShape]:
        """The recorded shapes."""
        return self._shapes.keys()

    @property
    def replayed(self) -> Replayed:
        """The recordings, and when they were measured."""
        return self._replayed

    def recorded(self, shape: KernelShape) -> Collection[Measurement]:
        """All recorded measurements of one of ``shapes``."""
        return self._shapes[shape].values()

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The recorded configurations of the shape whose values are in ``axes``."""
        recorded = self._recorded(shape)
        if shape not in self._defaults:
            raise RecordingError(
                f"the recording has no default for {shape.op.value} {shape.label}: "
                'one of its lines needs "is_default": true'
            )
        within = [
            config
            for config in recorded
            if all(value in axes.get(name, (value,)) for name, value in config.as_dict().items())
        ]
        return SearchSpace(shape, within, default=self._defaults[shape])

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Answer the oldest pending configuration from the recording.

        Raises:
            ReplayMiss: The configuration was not recorded.
        """
        config = pending[0]
        recorded = self._recorded(shape).get(config)
        if recorded is None:
            raise ReplayMiss(
                f"the recording has no {config.as_dict()} for {shape.op.value} {shape.label}"
            )
        if recorded.outcome is not Outcome.OK:
            return recorded
        samples, cut = race(take_from(recorded.samples_us), lambda so_far: stop(config, so_far))
        if not cut:
            return recorded
        reason = TOO_SLOW_REASON
        return replace(recorded, outcome=Outcome.TOO_SLOW, samples_us=samples, reason=reason)

    def compare(
        self,
        shape: KernelShape,
        configs: Sequence[KernelConfig],
        enough: EnoughRule,
    ) -> Comparison:
        """Answer with the recorded samples, equally many for each, the first thousand at most."""
        recorded = self._recorded(shape)
        known = {
            config: recorded[config].samples_us
            for config in configs
            if config in recorded and recorded[config].outcome is Outcome.OK
        }
        count = min(*map(len, known.values()), _MOST_COMPARED) if known else 0
        return Comparison(samples_us={config: samples[:count] for config, samples in known.items()})

    def ceilings(self) -> Ceilings | None:
        """The recorded ceilings; None where the recordings have none."""
        return self._ceilings

    def _recorded(self, shape: KernelShape) -> Mapping[KernelConfig, Measurement]:
        try:
            return self._shapes[shape]
        except KeyError:
            raise ReplayMiss(
                f"the recording has no {shape.op.value} {shape.label}; it has "
                f"{len(self._shapes)} shapes, the first {self.shapes[0].op.value} "
                f"{self.shapes[0].label}"
            ) from None


def shipped_recording() -> Path:
    """The recording that autotune ships: the quick start's search spaces on an H100."""
    return Path(__file__).parents[1] / "recordings" / "llama-3.1-8b_h100.jsonl.gz"
