"""The parameters that vary over a set of configurations."""

from __future__ import annotations

from collections.abc import Iterable

from autotune.launch.config import KernelConfig


def varied(configs: Iterable[KernelConfig]) -> dict[str, list[int]]:
    """The parameters that have more than one value, each with its values in rising order.

    Args:
        configs: All of the same op.
    """
    tables = [config.as_dict() for config in configs]
    names = tables[0] if tables else ()
    axes = {name: sorted({table[name] for table in tables}) for name in names}
    return {name: values for name, values in axes.items() if len(values) > 1}
