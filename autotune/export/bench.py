"""What a folder of tuned files is worth: its entries timed side by side with vLLM's defaults."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from autotune.choose.selection import Ratio, is_settled
from autotune.errors import ExportError, InputError, SpaceError, printable
from autotune.export import look_up, read_table
from autotune.export.lookup import keys_in
from autotune.launch.config import KernelConfig
from autotune.launch.op import LookupKey, key_text
from autotune.launch.release import is_timed_as_pair
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Runner
from autotune.measure.measurement import Ceilings
from autotune.measure.roofline import floor_us
from autotune.plan.study import StudyPlan

#: The verdict on a configuration that fails to launch or gives wrong numbers.
DOES_NOT_RUN = "does not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """The result for one shape.

    Attributes:
        shape: The shape.
        layer: The names of its layers.
        is_between: Whether its token count lies between two of the plan's.
        path: The key that vLLM's look-up really takes.
        config: The configuration under that key.
        default_us: Median latency of vLLM's default, microseconds; None where it does not run.
        tuned_us: Median latency of ``config``, microseconds; None where it does not run.
        ratio: The default's latency over that of ``config``; None where one of them does not run.
        floor_us: The roofline's latency, microseconds.
        is_throttled: Whether the device lowered its clocks meanwhile.
    """

    shape: KernelShape
    layer: str
    is_between: bool
    path: LookupKey
    config: KernelConfig
    default_us: float | None
    tuned_us: float | None
    ratio: Ratio | None
    floor_us: float
    is_throttled: bool

    @property
    def verdict(self) -> str:
        """``faster``, ``same`` or ``slower`` than the default, or ``does not run``."""
        if self.tuned_us is None:
            return DOES_NOT_RUN
        return "faster" if self.ratio is None else self.ratio.verdict

    @property
    def is_slower(self) -> bool:
        """Whether vLLM would be better off without the entry."""
        return self.verdict in ("slower", DOES_NOT_RUN)

    @property
    def default_share(self) -> float | None:
        """Share of the roofline that the default reaches; None where it does not run."""
        return self.default_us and self.floor_us / self.default_us

    @property
    def tuned_share(self) -> float | None:
        """Share of the roofline that ``config`` reaches; None where it does not run."""
        return self.tuned_us and self.floor_us / self.tuned_us

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        ratio = self.ratio
        return self.shape.as_dict() | {
            "layer": self.layer,
            "key": list(self.path),
            "is_between": self.is_between,
            "config": self.config.as_dict(),
            "default_us": self.default_us,
            "tuned_us": self.tuned_us,
            "ratio": ratio and ratio.value,
            "low": ratio and ratio.low,
            "high": ratio and ratio.high,
            "verdict": self.verdict,
            "default_roofline_share": self.default_share,
            "tuned_roofline_share": self.tuned_share,
            "is_throttled": self.is_throttled,
        }


#: Called after every shape with its result, its number, from 1, and the number of shapes.
Progress = Callable[[Benched, int, int], None]


def bench(
    plan: StudyPlan,
    runner: Runner,
    folder: Path,
    *,
    ceilings: Ceilings,
    tokens_given: bool,
    progress: Progress | None = None,
) -> list[Benched]:
    """Time every shape of a plan with the folder's entry and with vLLM's default, side by side.

    Args:
        plan: The shapes.
        runner: Times; the folder's files are those of its GPU.
        folder: The folder that ``VLLM_TUNED_CONFIG_FOLDER`` would name.
        ceilings: What the device reaches at best.
        tokens_given: Whether to bench the plan's token counts only; else the counts halfway between
            them, too, for which vLLM takes the nearest entry.
        progress: Called after every shape.

    Raises:
        InputError: The folder has no file for an op, or vLLM would stop at an entry.
        AutotuneError: A shape cannot be measured.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that autotune run wrote")
    asked = list(_asked(plan.layers, with_between=not tokens_given))
    found = [find_entry(folder, each.shape, runner.environment.gpu) for each in asked]
    rows = []
    for number, (each, entry) in enumerate(zip(asked, found, strict=True), start=1):
        space = runner.space(each.shape, plan.axes[each.shape.op])
        row = Benched(
            **each._asdict(),
            **entry._asdict(),
            **_timed(runner, space, entry.config)._asdict(),
            floor_us=floor_us(
                each.shape, ceilings, pair=is_timed_as_pair(each.shape, runner.environment)
            ),
        )
        rows.append(row)
        if progress is not None:
            progress(row, number, len(asked))
    return rows


# ------------------------------------------------------------------ what is benched


class _Asked(NamedTuple):
    shape: KernelShape
    layer: str
    is_between: bool


def between_counts(counts: Iterable[int]) -> list[int]:
    """The geometric means of neighbouring token counts, rounded; left out where one is a count."""
    ordered = sorted(set(counts))
    means = (round(math.sqrt(low * high)) for low, high in pairwise(ordered))
    return [mean for mean in means if mean not in ordered]


def _asked(layers: dict[KernelShape, str], *, with_between: bool) -> Iterator[_Asked]:
    """The shapes to bench: those that differ in token count alone together, counts rising."""
    kinds: dict[KernelShape, dict[int, str]] = {}
    for shape, layer in layers.items():
        kinds.setdefault(shape.without_batch, {})[shape.num_tokens] = layer
    for kind, by_count in kinds.items():
        all_layers = ", ".join(dict.fromkeys(by_count.values()))
        between = between_counts(by_count) if with_between else []
        for count in sorted([*by_count, *between]):
            layer = by_count.get(count, all_layers)
            yield _Asked(replace(kind, num_tokens=count), layer, count in between)


# ------------------------------------------------------------------ what vLLM finds


class Entry(NamedTuple):
    """The configuration that vLLM's look-up ends at, and the key that it really takes."""

    config: KernelConfig
    path: LookupKey


def find_entry(folder: Path, shape: KernelShape, gpu: str) -> Entry:
    """What vLLM finds for a shape in a folder.

    Args:
        folder: The folder of the tuned files.
        shape: The shape.
        gpu: The GPU's name as ``torch.cuda.get_device_name()`` gives it.

    Raises:
        InputError: There is no file for the op, or vLLM would stop.
    """
    path = Path(f"{folder}/{shape.file_name(gpu)}")
    table = read_table(path, levels=len(shape.lookup_key))
    if table is None:
        raise InputError(
            f"{printable(str(path))} is not there: tune {shape.op.value} on this GPU too"
        )
    try:
        leaf, taken = look_up(table, shape.lookup_key)
        return Entry(_config_of(shape, leaf), taken)
    except (ExportError, SpaceError) as error:
        key = key_text(shape.lookup_key)
        raise InputError(f"{printable(str(path))}: looking up {key}: {error}") from error


def _config_of(shape: KernelShape, leaf: Any) -> KernelConfig:  # noqa: ANN401 - from a file
    """An entry as vLLM reads it; parameters that the op does not have are passed over.

    Raises:
        ExportError: A parameter is missing, at which vLLM would stop.
        SpaceError: A value is out of range.
    """
    values = shape.op.values_in(leaf)
    missing = [name for name in shape.op.required_parameters if name not in values]
    if missing:
        raise ExportError(
            f"vLLM would stop: the entry has no {', '.join(missing)}, only {keys_in(leaf)}; "
            "tune the shape again"
        )
    return KernelConfig.from_mapping(shape.op, values)


# ------------------------------------------------------------------ timing


class _Timed(NamedTuple):
    default_us: float | None
    tuned_us: float | None
    ratio: Ratio | None
    is_throttled: bool


def _timed(runner: Runner, space: SearchSpace, config: KernelConfig) -> _Timed:
    """Time a configuration beside the default; only once if both are the same launch."""
    default = space.default
    is_default = space.canonical(config) == default
    tuned = default if is_default else config

    # is_settled is true at once if its first argument is the fastest. So it is asked for both.
    def enough(samples: Mapping[KernelConfig, Sequence[float]]) -> bool:
        return is_settled(default, samples) and is_settled(tuned, samples)

    comparison = runner.compare(space.shape, list(dict.fromkeys([default, tuned])), enough)
    default_samples = comparison.samples_us.get(default, ())
    tuned_samples = comparison.samples_us.get(tuned, ())
    return _Timed(
        _median(default_samples),
        _median(tuned_samples),
        Ratio.of(default_samples, tuned_samples) if default_samples and tuned_samples else None,
        comparison.is_throttled,
    )


def _median(samples_us: Sequence[float]) -> float | None:
    return statistics.median(samples_us) if samples_us else None
