"""The static rules: which launch configurations are thrown out before they are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from autotune.errors import shown
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import (
    SMALLEST_BLOCK,
    MatmulSizes,
    block_limits,
    launched_rows,
    least_shared_memory_bytes,
    matmul_sizes,
    next_power_of_two,
)

#: The smallest blocks that a kernel runs with: vLLM's default for rank 8 has a ``block_n`` of 8.
_SMALLEST = {"block_m": SMALLEST_BLOCK, "block_n": 8, "block_k": SMALLEST_BLOCK}

#: float32 accumulators a thread may hold. A thread has 255 registers; with 1,024 accumulators
#: ptxas did not end within a minute, and everything up to 256 compiled (H100, Triton 3.6).
MOST_ACCUMULATORS = 256

#: A thread block has 1,024 threads at most, 32 to a warp.
MOST_WARPS = 32

#: Kernels are launched with whole numbers of 32 bits.
_MOST = 2**31 - 1

_BLOCKS = {"block_m", "block_n", "block_k"}
_POWERS_OF_TWO = _BLOCKS | {"num_warps"}


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a configuration is not worth a trial: the rule's name and a reason to read."""

    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.reason}"


# Each rule gives the reason why a configuration is thrown out before it is compiled, or None.


def value_fault(name: str, value: int) -> str | None:
    """Why no kernel can be launched with this value of a parameter; None where one can."""
    smallest = _SMALLEST.get(name, 1)
    is_power = value > 0 and not value & (value - 1)
    if name in _POWERS_OF_TWO and (value < smallest or not is_power):
        return f"{name} must be a power of two of at least {smallest}: got {shown(value)}"
    if value < smallest:
        return f"{name} must be {smallest} or more: got {shown(value)}"
    if value > _MOST:
        return f"{name} must be at most {_MOST}: got {shown(value)}"
    if name == "num_warps" and value > MOST_WARPS:
        return f"{name} must be at most {MOST_WARPS}: got {value}"
    return None


def _power_of_two(_sizes: MatmulSizes | None, config: KernelConfig) -> str | None:
    faults = (value_fault(name, getattr(config, name)) for name in sorted(_POWERS_OF_TWO))
    return next(filter(None, faults), None)


def _block_within_dimension(sizes: MatmulSizes | None, config: KernelConfig) -> str | None:
    for name, limit in block_limits(sizes).items() if sizes else ():
        if getattr(config, name) > limit:
            return f"{name} {getattr(config, name)} is larger than its whole dimension, {limit}"
    return None


def _split_within_depth(sizes: MatmulSizes | None, config: KernelConfig) -> str | None:
    if sizes is None or config.split_k is None:
        return None
    steps = -(-sizes[2] // config.block_k)
    if config.split_k > next_power_of_two(steps):
        return f"split_k {config.split_k} leaves blocks with nothing to do: k has {steps} steps"
    return None


def _accumulators(_sizes: MatmulSizes | None, config: KernelConfig) -> str | None:
    per_thread = config.block_m * config.block_n // (32 * config.num_warps)
    if per_thread > MOST_ACCUMULATORS:
        return f"{per_thread} float32 accumulators a thread, {MOST_ACCUMULATORS} at most"
    return None


_RULES: tuple[tuple[str, Callable[[MatmulSizes | None, KernelConfig], str | None]], ...] = (
    ("power_of_two", _power_of_two),
    ("block_within_dimension", _block_within_dimension),
    ("split_within_depth", _split_within_depth),
    ("accumulators", _accumulators),
)

#: The rules whose configurations run, but leave a part of their blocks with nothing to do.
WASTE_RULES = frozenset({"block_within_dimension", "split_within_depth"})


def broken_rules(config: KernelConfig, sizes: MatmulSizes | None) -> Iterator[Rejection]:
    """The static rules that a configuration breaks.

    Args:
        config: The configuration.
        sizes: Of the matrix product; None if not known, which leaves out the rules about them.
    """
    for name, rule in _RULES:
        reason = rule(sizes, config)
        if reason is not None:
            yield Rejection(name, reason)


def memory_rejection(
    op: LoraOp, config: KernelConfig, *, value_bytes: int, limit_bytes: int | None
) -> Rejection | None:
    """Whether a configuration needs more shared memory than there is; None if not.

    Args:
        op: The op.
        config: The configuration that is really launched.
        value_bytes: Size of a weight, bytes.
        limit_bytes: What a thread block may use on the device; None if not known.
    """
    needed = least_shared_memory_bytes(op, config, value_bytes)
    if limit_bytes is None or needed <= limit_bytes:
        return None
    return Rejection(
        "shared_memory",
        f"needs at least {needed} bytes of shared memory a block, and {limit_bytes} are there",
    )


def as_launched(
    shape: KernelShape, config: KernelConfig, forced: Mapping[str, int]
) -> KernelConfig:
    """The configuration that is really launched; two with the same result are the same launch.

    ``group_size_m`` orders the tiles. It makes no difference if there is one row or one column of
    tiles, and values above the number of rows are the same.

    Args:
        shape: The shape that is launched.
        config: The configuration that was asked for.
        forced: Parameters that the kernel provider sets itself, whatever the configuration says.
    """
    config = replace(config, **forced) if forced else config
    if config.group_size_m is None:
        return config
    rows = -(-launched_rows(shape, config.block_m) // config.block_m)
    columns = -(-matmul_sizes(shape)[1] // config.block_n)
    group = 1 if columns == 1 else min(config.group_size_m, rows)
    return replace(config, group_size_m=group)
