"""The runners of a run: on the GPUs of this machine or of a Ray cluster, or replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from autotune.measure._base import Runner
from autotune.measure.cuda.choice import Asked
from autotune.measure.hosts import ray_runners
from autotune.measure.replay import ReplayRunner
from autotune.measure.runners import Begun, gpu_runners, replay_workers


@contextmanager
def opened_runners(
    kernels: str,
    gpus: Asked,
    say: Callable[[str], None],
    *,
    recorded: ReplayRunner | None = None,
    begun: Begun | None = None,
    ray: str | None = None,
) -> Iterator[Sequence[Runner]]:
    """The runners of a run, which are closed afterwards: replays, or else those of GPUs.

    Args:
        kernels: As for ``gpu_runners``; so are the others.
        gpus: Which GPUs, or how many replays.
        say: Called with each line that the user should read.
        recorded: Has read the recordings that answer; None where GPUs measure.
        begun: What ``begin_gpus`` returned.
        ray: The address of the Ray cluster that has the GPUs; None for those of this machine.

    Raises:
        AutotuneError: As ``gpu_runners``, ``replay_workers`` and ``ray_runners``.
    """
    with ExitStack() as opened:
        runners: Sequence[Runner]
        if ray is not None:
            joined = ray_runners(ray, kernels, say, gpus=gpus, recorded=recorded)
            runners = opened.enter_context(joined)
        elif recorded is not None:
            runners = replay_workers(recorded, gpus)
        else:
            runners = gpu_runners(kernels, say, begun, gpus=gpus)
        for runner in runners:
            opened.enter_context(runner)
        yield runners
