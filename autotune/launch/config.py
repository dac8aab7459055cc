"""KernelConfig: one point of a search space, the values that a kernel is launched with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeGuard

from autotune.errors import SpaceError, shown
from autotune.launch.op import MOE_DEFAULTS, PARAMETER_DEFAULTS, LoraOp

#: No useful launch parameter is larger: a tile of 4,096 rows fits no GPU.
LARGEST_VALUE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """One launch configuration. A parameter that its op does not have is None."""

    block_m: int
    block_n: int
    block_k: int
    split_k: int | None = None
    group_size_m: int | None = None
    num_warps: int
    num_stages: int
    num_ctas: int | None = None

    @classmethod
    def from_mapping(cls, op: LoraOp, table: Mapping[str, Any]) -> KernelConfig:
        """Read a configuration of ``op``; absent parameters take vLLM's own defaults.

        Raises:
            SpaceError: A parameter is unknown, missing, or not a positive integer.
        """
        if not isinstance(table, Mapping):
            raise SpaceError(f"a configuration must be an object: got {shown(table)}")
        parameters = op.parameters
        for name in table:
            if name not in parameters:
                raise SpaceError(
                    f"{op.value} has no parameter {shown(name)}; it has {', '.join(parameters)}"
                )
        values = {}
        defaults = MOE_DEFAULTS if op.is_moe else PARAMETER_DEFAULTS
        for name in parameters:
            value = table.get(name, defaults.get(name))
            if not is_value(value):
                raise SpaceError(f"{name} must be 1 to {LARGEST_VALUE}: got {shown(value)}")
            values[name] = value
        return cls(**values)

    @property
    def splits_k(self) -> bool:
        """Whether several thread blocks add up one sum, in whichever order they come.

        vLLM's kernels do so for a ``split_k`` above 1, with atomic additions of floats, and nowhere
        else (``do_shrink_kernel`` in ``kernel_utils.py`` and ``_fused_moe_lora_kernel``, 0.11.1 to
        0.33.0). So the same input may give other bits from run to run.
        """
        return self.split_k not in (None, 1)

    def as_dict(self) -> dict[str, int]:
        """The parameters that the op has, in the order in which they are written."""
        values = zip(_NAMES, _values(self), strict=True)
        return {name: value for name, value in values if value is not None}


#: The names of all parameters, and what reads their values. ``as_dict`` is called for every
#: configuration of every space.
_NAMES = tuple(field.name for field in fields(KernelConfig))
_values = attrgetter(*_NAMES)


def is_value(value: object) -> TypeGuard[int]:
    """Whether a launch parameter may have this value."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_VALUE
