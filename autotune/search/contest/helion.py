"""Helion's surrogate search, LFBO, on a recorded shape.

Helion tunes kernels written elsewhere through ``helion.autotuner.autotune``, which times on a GPU.
A search times through a class, but the function has no argument to choose that class (Helion 1.5).
So the search is made here as the function makes it, with a class that answers from a recording.
Timing again at the end is left out, because it would give the same figures. The search itself is
Helion's.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from autotune.errors import InputError, install_hint
from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.measure import Measurement, Outcome

#: The search's name among samplers, and its name in Helion.
LFBO = "helion:lfbo"
_ALGORITHM = "LFBOPatternSearch"


def is_installed() -> bool:
    """Whether Helion is installed."""
    return importlib.util.find_spec("helion") is not None


class _Enough(BaseException):
    """The trials are used up. The search would take an ``Exception`` for a broken kernel."""


class _Answers:
    """Answers the search from a recording, and remembers what it asked for."""

    def __init__(
        self, space: SearchSpace, measured: Mapping[KernelConfig, Measurement], trials: int
    ) -> None:
        self._measured = measured
        self._fixed = space.default.as_dict()
        self._by_values = {tuple(config.as_dict().values()): config for config in space.configs}
        self._wanted = min(trials, len(space.configs))
        self.asked = {space.default: None}

    def latency_ms(self, values: Mapping[str, int]) -> float:
        """A configuration's latency; infinite where it does not work or is not in the space."""
        config = self._by_values.get(tuple({**self._fixed, **values}.values()))
        if config is None:
            return math.inf
        if len(self.asked) == self._wanted and config not in self.asked:
            raise _Enough
        self.asked[config] = None
        one = self._measured[config]
        return one.latency_us / 1e3 if one.outcome is Outcome.OK else math.inf


def lfbo(
    space: SearchSpace, measured: Mapping[KernelConfig, Measurement], *, seed: int, trials: int
) -> list[KernelConfig]:
    """The configurations that Helion's search evaluates, in order, the default first.

    A configuration that is not in the space fails, and does not count as a trial.

    Args:
        space: The space to search.
        measured: The measurement of every configuration of the space.
        seed: The seed of Helion's generator.
        trials: The most distinct configurations; the search may end before.

    Raises:
        InputError: Helion is not installed, or its version is not supported.
    """
    answers = _Answers(space, measured, trials)
    axes = {name: values for name, values in space.axes.items() if len(values) > 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _refused_without_helion():
            search = _search(axes, space.default, answers, seed)
        with suppress(_Enough):
            search.autotune()
    return list(answers.asked)


@contextmanager
def _refused_without_helion() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{LFBO} needs Helion 1.5 ({error}); install it with: {install_hint('helion')}"
        ) from None


def _nothing(*_args: object, **_options: object) -> None:
    """Stands for a kernel, and for what Helion does around one: nothing is launched."""


def _search(
    axes: Mapping[str, Sequence[int]], default: KernelConfig, answers: _Answers, seed: int
) -> Any:  # noqa: ANN401 - Helion may not be there
    """Helion's search object, with recorded figures in place of a benchmark."""
    from helion.autotuner import search_algorithms

    search = search_algorithms[_ALGORITHM](_kernel(axes, default, seed), ())
    search._benchmark_provider_cls = _benchmark(answers)  # noqa: SLF001 - see above
    search.rebenchmark = _nothing
    search.final_rebenchmark_best = lambda best: best
    search.run_final_pick_verification = _nothing
    return search


def _benchmark(answers: _Answers) -> type:
    """The class that answers from the recording where Helion would time a kernel."""
    from helion.autotuner.benchmark_provider import BenchmarkProvider, BenchmarkResult

    def benchmark(_self: object, configs: Sequence[Any], **_options: object) -> list[Any]:
        latencies = [answers.latency_ms(config.config) for config in configs]
        return [
            BenchmarkResult(config, _nothing, ms, "ok" if ms < math.inf else "error", 0.0)
            for config, ms in zip(configs, latencies, strict=True)
        ]

    methods = dict.fromkeys(("__init__", "setup", "cleanup"), _nothing)
    return type(
        "Recorded",
        (BenchmarkProvider,),
        {**methods, "benchmark": benchmark, "mutated_arg_indices": ()},
    )


def _kernel(axes: Mapping[str, Sequence[int]], default: KernelConfig, seed: int) -> Any:  # noqa: ANN401 - Helion may not be there
    """A kernel for Helion to tune: its axes, and nothing to launch."""
    from helion.autotuner import EnumFragment
    from helion.autotuner.external import _ExternalKernelAdapter, create_user_config_spec

    # The first choice of an axis is where the search starts.
    choices = {
        name: EnumFragment(tuple(sorted(values, key=lambda v: v != getattr(default, name))))
        for name, values in axes.items()
    }
    return _ExternalKernelAdapter(
        create_user_config_spec(choices),
        lambda _config: _nothing,
        (),
        baseline_fn=_nothing,
        autotune_log_level=0,
        autotune_progress_bar=False,
        autotune_random_seed=seed,
    )
