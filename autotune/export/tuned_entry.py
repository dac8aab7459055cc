"""TunedEntry: an entry of a provenance file, read with care, as the collection keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, NamedTuple

from autotune.choose.selection import Ratio
from autotune.errors import InputError, shown
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.op import MOE_OPS
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome

#: A model as the hub names it, ``meta-llama/Llama-3.1-8B``, or a name without its owner.
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

#: Names of layers, such as ``o, down``.
_LAYERS = re.compile(r"[\w ,.+-]{0,300}", re.ASCII)

#: The ops of a mixture of experts, as a provenance file spells them.
_OPS = {op.value for op in MOE_OPS}

#: GPUs that one model is split over; a node has 8 or 16.
_MOST_PARALLEL = 1024


class TunedFor(NamedTuple):
    """The model that an entry was tuned for.

    Attributes:
        model: Its name.
        tensor_parallel: The server's ``--tensor-parallel-size``.
        layers: The names of its layers that launch the shape.
    """

    model: str
    tensor_parallel: int
    layers: str

    @classmethod
    def read(cls, table: object) -> TunedFor:
        """Read it from a provenance file.

        Raises:
            InputError: A value is missing, or is of no such kind.
        """
        given = table if isinstance(table, dict) else {}
        model, size, layers = (given.get(name) for name in cls._fields)
        if not isinstance(model, str) or not _MODEL.fullmatch(model):
            raise InputError(
                f"tuned_for: model must be a name such as Qwen/Qwen3-8B: got {model!r}"
            )
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MOST_PARALLEL:
            raise InputError(f"tuned_for: tensor_parallel must be a number of GPUs: got {size!r}")
        if not isinstance(layers, str) or not _LAYERS.fullmatch(layers):
            raise InputError(f"tuned_for: layers must be layers' names: got {shown(layers)}")
        return cls(model, size, layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedEntry:
    """One configuration with its evidence. It holds nothing private: no path, host or user.

    Attributes:
        shape: What was tuned.
        config: What was chosen.
        environment: Where it was measured.
        latency_us: Its latency, microseconds.
        default_us: The default's latency, microseconds; None where the default does not run.
        ratio: How many times as fast as the default it is; None where the default does not run.
        layer: For a MoE op what its layer gains, as in a provenance file; None for others.
        trials: How many configurations were measured.
        outcomes: How many of them ended in which outcome.
        is_default: Whether it is vLLM's own configuration.
        is_throttled: Whether the device lowered its clocks meanwhile.
        tuned_for: The models that it was tuned for; empty if that is not known.
        measured_at: The day, such as ``2026-11-28``; empty if that is not known.
    """

    shape: KernelShape
    config: KernelConfig
    environment: Environment
    latency_us: float
    default_us: float | None
    ratio: Ratio | None
    layer: Mapping[str, Any] | None
    trials: int
    outcomes: Mapping[str, int]
    is_default: bool
    is_throttled: bool
    tuned_for: tuple[TunedFor, ...] = ()
    measured_at: str = ""

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> TunedEntry:
        """Read an entry of a provenance file; keys that it does not need are passed over.

        Raises:
            InputError: A value is missing or wrong, or the entry was replayed, not measured, or
                measured on other kernels than vLLM's, or chosen with ``--deterministic``.
        """
        if "replayed" in entry:
            raise InputError("it was replayed from a recording, not measured; tune it on a GPU")
        environment = Environment.from_mapping(_table(entry, "environment"))
        if environment.provider != "vllm":
            raise InputError(
                f"it was measured on {environment.provider} kernels, and a server launches vLLM's; "
                "tune with --kernels vllm"
            )
        if environment.deterministic:
            raise InputError(
                "it was chosen with --deterministic, and others shall get the fastest; tune without"
            )
        shape = KernelShape.from_mapping(_table(entry, "shape"))
        models = entry.get("tuned_for", [])
        if not isinstance(models, list):
            raise InputError(f"tuned_for must be a list: got {shown(models)}")
        default_us = entry.get("default_latency_us")
        return cls(
            shape=shape,
            config=KernelConfig.from_mapping(shape.op, _table(entry, "config")),
            environment=environment,
            latency_us=_number(entry, "latency_us"),
            default_us=None if default_us is None else _number(entry, "default_latency_us"),
            ratio=_ratio(entry),
            layer=_layer(entry.get("layer")),
            trials=_count(entry, "trials"),
            outcomes=_outcomes(_table(entry, "outcomes")),
            is_default=entry.get("is_default") is True,
            is_throttled=entry.get("is_throttled") is True,
            tuned_for=tuple(TunedFor.read(each) for each in models),
            measured_at=_day(entry.get("measured_at", "")),
        )

    def labelled(self, tuned_for: TunedFor | None, measured_at: str) -> TunedEntry:
        """The entry with a model that it was tuned for, and the day, where they are known."""
        models = dict.fromkeys([*self.tuned_for, *([tuned_for] if tuned_for else [])])
        return replace(self, tuned_for=tuple(models), measured_at=measured_at or self.measured_at)

    @property
    def served(self) -> Ratio | None:
        """What vLLM gains by it: of a MoE op, whose ops share one ``block_m``, its layer's gain."""
        return self.ratio if self.layer is None else _ratio(self.layer)

    def as_dict(self) -> dict[str, Any]:
        """The entry as a provenance file has it, with its models and its day."""
        entry = {
            "latency_us": self.latency_us,
            "default_latency_us": self.default_us,
            **_speedup(self.ratio),
            "trials": self.trials,
            "outcomes": dict(sorted(self.outcomes.items())),
            "shape": self.shape.as_dict(),
            "config": self.config.as_dict(),
            "is_default": self.is_default,
            "is_throttled": self.is_throttled,
            "environment": self.environment.as_dict(),
        }
        if self.layer is not None:
            entry["layer"] = dict(self.layer)
        if self.tuned_for:
            entry["tuned_for"] = [each._asdict() for each in self.tuned_for]
        if self.measured_at:
            entry["measured_at"] = self.measured_at
        return entry


def _speedup(ratio: Ratio | None) -> dict[str, Any]:
    return {
        "speedup": None if ratio is None else ratio.value,
        "interval": None if ratio is None else [ratio.low, ratio.high],
    }


def _table(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = entry.get(name)
    if not isinstance(table, dict):
        raise InputError(f"{name} must be an object: got {shown(table)}")
    return table


def _is_number(value: object) -> bool:
    # Neither infinite nor NaN: both fail one of the comparisons.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    if not _is_number(value):
        raise InputError(f"{name} must be a number above 0: got {shown(value)}")
    return float(value)  # type: ignore[arg-type]


def _count(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InputError(f"{name} must be a whole number: got {shown(value)}")
    return value


def _ratio(entry: Mapping[str, Any]) -> Ratio | None:
    value, interval = entry.get("speedup"), entry.get("interval")
    if value is None:
        return None
    ends = interval if isinstance(interval, list) else []
    if len(ends) != 2 or not all(map(_is_number, (value, *ends))) or ends[0] > ends[1]:
        raise InputError(
            "speedup and interval must be a ratio and the two ends of its interval: got "
            f"{shown(value)} and {shown(interval)}"
        )
    return Ratio(value=float(value), low=float(ends[0]), high=float(ends[1]))


def _day(text: object) -> str:
    try:
        is_day = text == "" or date.fromisoformat(str(text)).isoformat() == text
    except ValueError:
        is_day = False
    if not is_day:
        raise InputError(f"measured_at must be a day such as 2026-11-28: got {shown(text)}")
    return str(text)


def _layer(table: object) -> Mapping[str, Any] | None:
    if table is None:
        return None
    if not isinstance(table, dict):
        raise InputError(f"layer must be an object: got {shown(table)}")
    ops = table.get("chosen_for")
    if not isinstance(ops, list) or any(op not in _OPS for op in map(str, ops)):
        raise InputError(f"layer: chosen_for must be a list of ops: got {shown(ops)}")
    return {"block_m": _count(table, "block_m"), "chosen_for": ops, **_speedup(_ratio(table))}


def _outcomes(table: Mapping[str, Any]) -> Mapping[str, int]:
    unknown = [name for name in table if name not in {each.value for each in Outcome}]
    if unknown:
        raise InputError(f"outcomes: unknown outcome: got {shown(unknown[0])}")
    return {name: _count(table, name) for name in table}
