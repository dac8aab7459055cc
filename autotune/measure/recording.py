"""Recordings: measurements in a file, one JSON object a line, gzipped.

The first line is a header with the schema, the environment and, if they were measured, the device's
ceilings. Every other line is a measurement. A key that a line leaves out takes its default; unknown
keys are ignored.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from autotune.errors import InputError, RecordingError
from autotune.files import write_errors
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure._base import EnoughRule, Runner, StopRule
from autotune.measure.measurement import (
    Ceilings,
    Comparison,
    Measurement,
    Outcome,
    Replayed,
    RunnerStatus,
)

SCHEMA = "autotune-recording/1"

#: What to do where a recording cannot be written.
_ADVICE = "free the place, or name another file"

#: What ``measured_at`` may be: nothing, a day, or the first and the last day.
_DAYS = re.compile(r"(\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?)?", re.ASCII)

#: Decimals of a sample in microseconds: CUDA events do not resolve a nanosecond.
_DECIMALS = 3


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


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Where a configuration was measured ``ok`` more than once, the samples are joined.

    Raises:
        RecordingError: The file cannot be read, is cut off, or is no recording.
    """
    lines = _lines(path)
    header = next(lines, {})
    if header.get("schema") != SCHEMA:
        raise RecordingError(
            f"{path} is no recording: its first line has schema {header.get('schema')!r}, "
            f"not {SCHEMA!r}"
        )
    environment = Environment.from_mapping(header.get("environment") or {})
    shapes: dict[KernelShape, dict[KernelConfig, Measurement]] = {}
    defaults: dict[KernelShape, KernelConfig] = {}
    for measurement, is_default in _measurements(path, lines):
        by_config = shapes.setdefault(measurement.shape, {})
        earlier = by_config.get(measurement.config)
        by_config[measurement.config] = _joined(earlier, measurement)
        if is_default:
            defaults[measurement.shape] = measurement.config
    return Recording(
        environment=environment,
        shapes=shapes,
        defaults=defaults,
        ceilings=_ceilings(path, header.get("ceilings")),
        measured_at=_day(path, header.get("measured_at", "")),
    )


def _day(path: Path, value: object) -> str:
    if not isinstance(value, str) or not _DAYS.fullmatch(value):
        raise RecordingError(
            f"{path} line 1: measured_at must be a day such as 2026-11-24, or two with ' to ' "
            f"between: got {value!r}; leave it out where it is not known"
        )
    return value


def _ceilings(path: Path, table: Any) -> Ceilings | None:  # noqa: ANN401 - from a file
    if table is None:
        return None
    try:
        return Ceilings(float(table["copy_bytes_per_s"]), float(table["matmul_flops_per_s"]))
    except (KeyError, TypeError, ValueError):
        raise RecordingError(f"{path} line 1 has no usable ceilings: got {table!r}") from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise RecordingError(f"{path} line {number} is no JSON object: {text[:40]!r}")
                yield line
    except EOFError:
        raise RecordingError(f"{path} is cut off: copy or record it again") from None
    except (OSError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RecordingError(f"cannot read the recording {path}: {reason}") from None


def _measurements(
    path: Path, lines: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Measurement, bool]]:
    """The measurement of every line below the header, and whether it is the default's."""
    for number, line in enumerate(lines, start=2):
        try:
            yield _measurement(line), bool(line.get("is_default"))
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise RecordingError(f"{path} line {number} is no measurement: {error}") from None


def _measurement(line: Mapping[str, Any]) -> Measurement:
    shape = KernelShape.from_mapping(line["shape"])
    return Measurement(
        shape=shape,
        config=KernelConfig.from_mapping(shape.op, line["config"]),
        outcome=Outcome(line["outcome"]),
        reason=line.get("reason", ""),
        samples_us=tuple(map(float, line.get("samples_us", ()))),
        relative_error=line.get("relative_error"),
        shared_memory_bytes=line.get("shared_memory_bytes"),
        registers=line.get("registers"),
        spills=line.get("spills"),
    )


def _joined(earlier: Measurement | None, later: Measurement) -> Measurement:
    if earlier is None or earlier.outcome is not Outcome.OK or later.outcome is not Outcome.OK:
        return later
    return replace(later, samples_us=earlier.samples_us + later.samples_us)


class RecordingWriter:
    """Writes a recording line by line; the file gets its name when the writer is closed.

    A context manager. After an error it keeps what was written until then, since measuring it took
    time on a GPU.
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
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        with write_errors(self._partial, RecordingError, advice=_ADVICE):
            # Without the time of day, the same measurements of a day make the same bytes.
            self._gzip = gzip.GzipFile(self._partial, "wb", mtime=0)
        known: dict[str, Any] = {} if ceilings is None else {"ceilings": asdict(ceilings)}
        if measured_at is None:
            measured_at = datetime.now(timezone.utc).date().isoformat()
        if measured_at:
            known["measured_at"] = measured_at
        self._write({"schema": SCHEMA, "environment": environment.as_dict(), **known})

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
        with write_errors(self._partial, RecordingError, advice=_ADVICE):
            self._gzip.write(json.dumps(line).encode() + b"\n")


class RecordingRunner(Runner):
    """Records everything that another runner measures."""

    def __init__(self, inner: Runner, writer: RecordingWriter) -> None:
        self._inner, self._writer = inner, writer
        self.environment, self.lookahead = inner.environment, inner.lookahead
        self._defaults: dict[KernelShape, KernelConfig] = {}

    def kernel_space(self, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
        """The search space of the inner runner."""
        space = self._inner.kernel_space(shape, axes)
        self._defaults[shape] = space.default
        return space

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
            is_default = measurement.config == self._defaults.get(measurement.shape)
            self._writer.write(measurement, is_default=is_default)

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
