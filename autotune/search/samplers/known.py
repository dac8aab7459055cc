"""Finished shapes of an older database, to begin a search with."""

from __future__ import annotations

from autotune.errors import InputError
from autotune.launch.environment import Environment
from autotune.search.samplers.transfer import Neighbour
from autotune.search.tuner import name_in
from autotune.store import Store, shown


def finished_earlier(url: str, environment: Environment) -> list[Neighbour]:
    """The shapes that a database has a selection of, on the same GPU with the same provider.

    Drivers and versions may differ: what was fast there is asked for first, and measured anew.

    Args:
        url: The older database.
        environment: Where shapes are to be searched now.

    Raises:
        StorageError: It cannot be read, or is not there.
        InputError: It has no such shape.
    """
    store = Store(url, must_exist=True)
    try:
        found = []
        for measured_in, selection in store.selections():
            if measured_in.is_like(environment):
                shape = selection.shape
                record = store.study(name_in(measured_in, shape), shape, measured_in)
                measurements = [item.measurement for item in store.finished(record)]
                found.append(Neighbour(shape, measurements))
    finally:
        store.close()
    if not found:
        raise InputError(
            f"--warm-start: {shown(url)} holds no finished shape of {environment.gpu} with "
            f"{environment.provider} kernels; give another database, or none"
        )
    return found
