"""Other tuners' searches on a recorded shape: Kernel Tuner's strategies, and Helion's.

Both packages are optional. Kernel Tuner searches in its own simulation mode: it reads every
configuration's time from a cache file, which is made here from the recording. A restriction limits
it to the recorded configurations.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from autotune.errors import InputError, install_hint
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome, Runner
from autotune.search.contest import helion
from autotune.search.contest.replayed import Replayed, in_full

#: The prefix of a Kernel Tuner strategy among the names of samplers.
PREFIX = "kernel-tuner:"

#: Kernel Tuner's default strategy, and those that its authors found best or compare with.
STRATEGIES = ("brute_force", "genetic_algorithm", "diff_evo", "hybrid_vndx", "bayes_opt")

#: The only strategy that takes no limit on its evaluations: it goes through the whole space.
_UNLIMITED = "brute_force"


def installed_peers() -> list[str]:
    """The names, among samplers, of the other tuners' searches that are installed."""
    is_there = importlib.util.find_spec("kernel_tuner") is not None
    names = [PREFIX + name for name in STRATEGIES] if is_there else []
    return [*names, helion.LFBO] if helion.is_installed() else names


def is_peer(name: str) -> bool:
    """Whether a sampler's name is that of another tuner's search."""
    return name.startswith(PREFIX) or name == helion.LFBO


def search_as_peer(
    runner: Runner, shape: KernelShape, *, strategy: str, seed: int, trials: int
) -> Replayed:
    """Search one shape as another tuner does.

    The first trial is the default, as for every sampler here. A configuration that is evaluated
    again counts once. A strategy may break down in a small space; then only the default is left.

    Args:
        runner: Answers from recordings.
        shape: The shape.
        strategy: The search, by a name that ``is_peer`` accepts.
        seed: The seed of Python's and numpy's generators, which Kernel Tuner uses, or of Helion's.
        trials: The number of distinct configurations, the default included.

    Raises:
        InputError: The tuner is not installed, or has no such strategy.
    """
    space = runner.space(shape, {})
    measured = in_full(runner, space)
    started = time.perf_counter()
    if strategy == helion.LFBO:
        found: list[KernelConfig] | None = helion.lfbo(space, measured, seed=seed, trials=trials)
    else:
        found = _kernel_tuner(strategy.removeprefix(PREFIX), space, measured, seed, trials)
    took_s = time.perf_counter() - started
    order = dict.fromkeys([space.default, *(found or ())])
    return Replayed(
        space=space,
        measurements=tuple(measured[config] for config in _filled(order, space, trials)),
        sampler_s=took_s,
        has_failed=found is None,
    )


def _kernel_tuner(
    name: str,
    space: SearchSpace,
    measured: Mapping[KernelConfig, Measurement],
    seed: int,
    trials: int,
) -> list[KernelConfig] | None:
    """The configurations that a strategy evaluated, in order; None where it broke down."""
    axes = {axis: list(values) for axis, values in space.axes.items()}
    by_key = {_key(config.as_dict(), axes): config for config in space.configs}
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that Kernel Tuner's strategies use
    found = _tuned(name, axes, {key: measured[config] for key, config in by_key.items()}, trials)
    return None if found is None else [by_key[_key(each, axes)] for each in found]


def _filled(
    found: Mapping[KernelConfig, Any], space: SearchSpace, trials: int
) -> list[KernelConfig]:
    """The first ``trials`` configurations, filled up with the default.

    Some strategies end before their budget. The default in place of unused trials leaves the best
    so far as it is.
    """
    wanted = min(trials, len(space.configs))
    configs = list(found)[:wanted]
    return configs + [space.default] * (wanted - len(configs))


def _key(values: Mapping[str, Any], axes: Mapping[str, Sequence[int]]) -> str:
    return ",".join(str(values[name]) for name in axes)


def _tuned(
    strategy: str,
    axes: dict[str, list[int]],
    measured: Mapping[str, Measurement],
    trials: int,
) -> list[dict[str, Any]] | None:
    """The values that Kernel Tuner evaluated, in order; None where the strategy broke down."""
    tune_kernel = _tune_kernel(strategy)

    # A function, because Kernel Tuner parses the source of a lambda, and fails.
    def is_recorded(values: Mapping[str, int]) -> bool:
        return _key(values, axes) in measured

    with tempfile.TemporaryDirectory() as folder, _silence():
        cache = Path(folder) / "cache.json"
        cache.write_text(json.dumps(_cache(axes, measured)), encoding="utf-8")
        try:
            results, _ = tune_kernel(
                _KERNEL,
                "",
                _SIZE,
                [],
                axes,
                lang="C",
                restrictions=is_recorded,
                strategy=None if strategy == _UNLIMITED else strategy,
                strategy_options=None if strategy == _UNLIMITED else {"max_fevals": trials},
                cache=str(cache),
                simulation_mode=True,
                quiet=True,
            )
        except Exception:  # noqa: BLE001 - whatever a strategy raises counts against it
            return None
    return list(results)


def _tune_kernel(strategy: str) -> Callable[..., tuple[list[dict[str, Any]], Any]]:
    """Kernel Tuner's ``tune_kernel``.

    Raises:
        InputError: Kernel Tuner is not installed, or has no strategy of that name.
    """
    try:
        from kernel_tuner import tune_kernel
        from kernel_tuner.interface import strategy_map
    except ImportError as error:
        raise InputError(
            f"{PREFIX}{strategy} needs Kernel Tuner ({error}); install it with: "
            + install_hint("kernel-tuner")
        ) from None
    if strategy not in strategy_map:
        known = ", ".join(PREFIX + name for name in strategy_map)
        raise InputError(f"Kernel Tuner has no strategy {strategy!r}; it has {known}")
    return tune_kernel  # type: ignore[no-any-return]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Kernel Tuner's output and warnings off the terminal."""
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


_KERNEL, _SIZE = "lora", (1,)


def _cache(axes: dict[str, list[int]], measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """The cache file of Kernel Tuner 1: times in milliseconds, or the name of an error."""
    return {
        "device_name": "recording",
        "kernel_name": _KERNEL,
        "problem_size": _SIZE,
        "tune_params_keys": list(axes),
        "tune_params": axes,
        "objective": "time",
        "cache": {
            key: {name: int(value) for name, value in zip(axes, key.split(","), strict=True)}
            | {"time": one.latency_us / 1e3 if one.outcome is Outcome.OK else "RuntimeFailedConfig"}
            for key, one in measured.items()
        },
    }
