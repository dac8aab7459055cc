"""Measuring on the GPUs of a Ray cluster. Ray is imported only where it is asked for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from autotune.errors import InputError, install_hint
from autotune.measure.cuda.choice import Asked
from autotune.measure.replay import ReplayRunner

if TYPE_CHECKING:
    from autotune.measure.hosts.remote import RemoteRunner

#: Ray reads them when it is imported. Without them it writes about itself to the terminal.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def ray_runners(
    address: str,
    kernels: str,
    say: Callable[[str], None],
    *,
    gpus: Asked = None,
    recorded: ReplayRunner | None = None,
) -> AbstractContextManager[list[RemoteRunner]]:
    """Runners on the GPUs of a Ray cluster, each in an actor; all end with the context.

    Args:
        address: ``auto`` for the cluster of this host, or its head's ``HOST:PORT``.
        kernels: Name of the kernel provider, or ``auto``.
        say: Called with each line that the user should read.
        gpus: How many GPUs; None or ``all`` for all that are free.
        recorded: Answers in place of the GPUs; None to measure.

    Raises:
        InputError: Ray is not installed; in the context also: the cluster is not there, has too
            few free GPUs, or its hosts differ.
        AutotuneError: In the context: a host cannot measure; the message names it.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            f"--ray needs Ray, which is not installed here: {install_hint('ray')}, on all hosts"
        )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from autotune.measure.hosts import cluster

    return cluster.joined_runners(address, kernels, say, gpus=gpus, recorded=recorded)
