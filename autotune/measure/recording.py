"""Recordings: measurements in a file, one JSON object a line, gzipped.

The first line is a header with the schema, the environment and, if they were measured, the device's
ceilings. Every other line is a measurement. A key that a line leaves out takes its default; unknown
keys are ignored.
"""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field

from autotune.errors import InputError, RecordingError, shown
from autotune.files import write_errors
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure._base import EnoughRule, Runner, StopRule
from autotune.measure.figures import CeilingsTable, Days, Figures
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    Measurement,
    Outcome,
    Replayed,
    RunnerStatus,
)
from autotune.untrusted import Untrusted, read_json

SCHEMA = "autotune-recording/1"

#: What to do where a recording cannot be written.
_ADVICE = "free the place, or name another file"

#: Decimals of a sample in microseconds: CUDA events do not resolve a nanosecond.
_DECIMALS = 3

#: Bytes of a line. A measurement of 100,000 samples has fewer.
_LONGEST_LINE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The contents of a recording.

    Attributes:
        environment: Where everything in it was measured.
        shapes: The measurements, by shape and configuration.
        defaults: vLLM's default configuration of each shape.
        ceilings: What the device reaches at best; None if that was not recorded.
        measured_at: The day on which it was measured, such as ``2026-11-24``, or the first and the
            last of several; empty if that was not recorded.
    """

    environment: Environment
    shapes: Mapping[KernelShape, Mapping[KernelConfig, Measurement]]
    defaults: Mapping[KernelShape, KernelConfig]
    ceilings: Ceilings | None = None
    measured_at: str = ""


class _Header(Untrusted):
    """The first line."""

    format: str = Field("", alias="schema")
    environment: dict[str, Any] = Field(default_factory=dict)
    ceilings: CeilingsTable | None = None
    measured_at: Days = ""


class _Line(Figures):
    """A line below the first."""

    shape: dict[str, Any]
    config: dict[str, Any]
    is_default: bool = False


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Where a configuration was measured ``ok`` more than once, the samples are joined.

    Raises:
        RecordingError: The file cannot be read, is cut off, is no recording, or holds no
            measurement; the message names the line, the field and the value.
    """
    lines = _lines(path)
    header = _header(path, next(lines, b"{}"))
    with _named(path, 1):
        environment = replace(Environment.from_mapping(header.environment), deterministic=False)
    shapes: dict[KernelShape, _Recorded] = {}
    by_text: dict[str, KernelShape] = {}
    for number, text in enumerate(lines, start=2):
        with _named(path, number):
            line = read_json(_Line, text)
            # Thousands of lines have the same shape.
            key = repr(line.shape)
            shape = by_text.get(key) or by_text.setdefault(
                key, KernelShape.from_mapping(line.shape)
            )
            config = KernelConfig.from_mapping(shape.op, line.config)
            measurement = line.measurement(shape, config)
        shapes.setdefault(shape, _Recorded()).add(measurement, is_default=line.is_default)
    if not shapes:
        raise RecordingError(f"{path} holds no measurement below its first line; record it again")
    known = header.ceilings
    return Recording(
        environment=environment,
        shapes={shape: one.measurements() for shape, one in shapes.items()},
        defaults={shape: one.default for shape, one in shapes.items() if one.default is not None},
        ceilings=None if known is None else known.ceilings,
        measured_at=header.measured_at,
    )


class _Recorded:
    """What the lines of one shape say."""

    def __init__(self) -> None:
        self.default: KernelConfig | None = None
        self._latest: dict[KernelConfig, Measurement] = {}
        self._samples: dict[KernelConfig, list[float]] = {}

    def add(self, measurement: Measurement, *, is_default: bool) -> None:
        config, earlier = measurement.config, self._latest.get(measurement.config)
        is_more = earlier is not None and earlier.outcome is measurement.outcome is Outcome.OK
        if not is_more:
            self._samples[config] = []
        self._samples[config] += measurement.samples_us
        self._latest[config] = measurement
        if is_default:
            self.default = config

    def measurements(self) -> dict[KernelConfig, Measurement]:
        return {
            config: one
            if len(self._samples[config]) == len(one.samples_us)
            else replace(one, samples_us=tuple(self._samples[config]))
            for config, one in self._latest.items()
        }


def _header(path: Path, text: bytes) -> _Header:
    with _named(path, 1):
        header = read_json(_Header, text)
    if header.format != SCHEMA:
        raise RecordingError(
            f"{path} is no recording: its first line has schema {shown(header.format)}, "
            f"not {SCHEMA!r}"
        )
    return header


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            while text := file.readline(_LONGEST_LINE + 1):
                if len(text) > _LONGEST_LINE:
                    raise RecordingError(f"{path} has a line of more than {_LONGEST_LINE} bytes")
                yield text
    except EOFError:
        raise RecordingError(f"{path} is cut off: copy or record it again") from None
    except (OSError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RecordingError(f"cannot read the recording {path}: {reason}") from None


@contextmanager
def _named(path: Path, number: int) -> Iterator[None]:
    """Name the file and the line in an error."""
    try:
        yield
    except InputError as error:
        raise RecordingError(f"{path} line {number}: {error}") from None


class RecordingWriter:
    """Writes a recording line by line; the file gets its name when the writer is closed.

    A context manager. After an error it keeps what was written until then, since measuring it took
    time on a GPU. Safe to use from several threads.

    Attributes:
        defaults: vLLM's default of each shape, as far as it is known.
    """

    def __init__(
        self,
        path: Path,
        environment: Environment,
        ceilings: Ceilings | None = None,
        *,
        measured_at: str | None = None,
    ) -> None:
        """Start a recording.

        Args:
            path: The file.
            environment: Where everything in it is measured.
            ceilings: What the device reaches at best; None if that is not known.
            measured_at: As in ``Recording``; today, in UTC, if not given.

        Raises:
            RecordingError: The file cannot be written.
        """
        self._path, self._lock = path, threading.Lock()
        self.defaults: dict[KernelShape, KernelConfig] = {}
        self._partial = path.with_name(path.name + ".partial")
        with write_errors(self._partial, RecordingError, advice=_ADVICE):
            # Without the time of day, the same measurements of a day make the same bytes.
            self._gzip = gzip.GzipFile(self._partial, "wb", mtime=0)
        known: dict[str, Any] = {} if ceilings is None else {"ceilings": asdict(ceilings)}
        if measured_at is None:
            measured_at = datetime.now(timezone.utc).date().isoformat()
        if measured_at:
            known["measured_at"] = measured_at
        # What may be chosen is no matter of what was measured.
        measured_in = replace(environment, deterministic=False)
        self._write({"schema": SCHEMA, "environment": measured_in.as_dict(), **known})

    def write(self, measurement: Measurement, *, is_default: bool) -> None:
        """Add one measurement.

        Raises:
            RecordingError: The file cannot be written.
        """
        line: dict[str, Any] = {
            "shape": measurement.shape.as_dict(),
            "config": measurement.config.as_dict(),
        }
        if is_default:
            line["is_default"] = True
        line["outcome"] = measurement.outcome.value
        if measurement.reason:
            line["reason"] = measurement.reason
        if measurement.samples_us:
            line["samples_us"] = [round(sample, _DECIMALS) for sample in measurement.samples_us]
        if measurement.relative_error is not None:
            line["relative_error"] = float(f"{measurement.relative_error:.3g}")
        for name in ("shared_memory_bytes", "registers", "spills"):
            if (value := getattr(measurement, name)) is not None:
                line[name] = value
        self._write(line)

    def close(self) -> None:
        """Finish the file and give it its name."""
        with write_errors(self._path, RecordingError, advice=_ADVICE):
            self._gzip.close()
            self._partial.replace(self._path)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._lock, write_errors(self._partial, RecordingError, advice=_ADVICE):
            self._gzip.write(json.dumps(line).encode() + b"\n")


class RecordingRunner(Runner):
    """Records everything that another runner measures."""

    def __init__(self, inner: Runner, writer: RecordingWriter) -> None:
        self._inner, self._writer = inner, writer
        self.environment, self.lookahead = inner.environment, inner.lookahead
        self.device = inner.device

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The search space of the inner runner."""
        space = self._inner.kernel_space(shape, axes)
        self._writer.defaults[shape] = space.default
        return space

    def first_ready(self, pending: Mapping[KernelShape, Sequence[KernelConfig]]) -> KernelShape:
        """The shape that the inner runner has ready first."""
        return self._inner.first_ready(pending)

    def leave(self, shape: KernelShape) -> None:
        """Let the inner runner drop what it holds for a shape."""
        self._inner.leave(shape)

    def measure(
        self, shape: KernelShape, pending: Sequence[KernelConfig], stop: StopRule
    ) -> Measurement:
        """Measure as the inner runner does, and record the measurement."""
        measurement = self._inner.measure(shape, pending, stop)
        self.recall([measurement])
        return measurement

    def recall(self, measurements: Iterable[Measurement]) -> None:
        """Record what earlier runs measured too, so that the recording is complete."""
        for measurement in measurements:
            is_default = measurement.config == self._writer.defaults.get(measurement.shape)
            self._writer.write(measurement, is_default=is_default)

    def expect(self, configs: Mapping[KernelShape, Sequence[KernelConfig]]) -> None:
        """Tell the inner runner what will be needed."""
        self._inner.expect(configs)

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare as the inner runner does; comparisons are not recorded."""
        return self._inner.compare(shape, configs, enough)

    @property
    def status(self) -> RunnerStatus | None:
        """The status of the inner runner."""
        return self._inner.status

    @property
    def replayed(self) -> Replayed | None:
        """The recordings that the inner runner answers from."""
        return self._inner.replayed

    @property
    def answered(self) -> Collection[KernelShape]:
        """The shapes that the inner runner holds measurements of."""
        return self._inner.answered

    def ceilings(self) -> Ceilings | None:
        """The ceilings of the inner runner's device."""
        return self._inner.ceilings()

    def close(self) -> None:
        """Close the inner runner; the writer is closed by its owner."""
        self._inner.close()
