"""What a server launches with a folder's files: the entry of each batch size, else the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from autotune.errors import EntryMissing, SpaceError
from autotune.export.check.entries import Examined
from autotune.export.lookup import look_up
from autotune.launch.config import KernelConfig
from autotune.launch.late import ServedKernel
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.measure.kernels.defaults import default_config

#: vLLM's default of shrink changes once over the batch sizes, from 127 to 128.
_DEFAULTS_CHANGE = (127, 128)


def served_kernels(
    gpu: str, kernels: Mapping[KernelShape, WarmedSizes], read: Mapping[str, Examined]
) -> Iterator[ServedKernel]:
    """The kernels of a server, each with the configurations that vLLM finds.

    Args:
        gpu: The GPU's name, or its part of the files' names.
        kernels: Every kernel, ``without_batch``, with its batch sizes in the server.
        read: By name, the folder's files.
    """
    for kind, sizes in kernels.items():
        file = read.get(kind.file_name(gpu))
        rows = None if file is None else {entry.key.m for entry in file.entries} or None
        yield ServedKernel(
            kind=kind,
            sizes=sizes,
            rows=_DEFAULTS_CHANGE if rows is None else rows,
            config_at=_default_at(kind) if file is None else partial(_config_at, kind, file),
        )


def _default_at(kind: KernelShape) -> Callable[[int], KernelConfig]:
    return lambda size: default_config(replace(kind, num_tokens=size))


def _config_at(kind: KernelShape, file: Examined, size: int) -> KernelConfig | None:
    """What vLLM launches at a batch size; None where it would stop."""
    shape = replace(kind, num_tokens=size)
    try:
        found = look_up(file.file.content, shape.lookup_key)
        if not isinstance(found.leaf, Mapping):
            return None
        values = kind.op.values_in(found.leaf)
        known = {name: values[name] for name in kind.op.parameters if name in values}
        return KernelConfig.from_mapping(kind.op, known)
    except EntryMissing as error:
        return default_config(shape) if error.vllm_error is None else None
    except SpaceError:
        return None
