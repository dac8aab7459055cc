"""KernelConfig and SearchSpace: which launch configurations of a shape are worth a trial."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeGuard

from autotune.errors import SpaceError
from autotune.launch.op import MOE_DEFAULTS, PARAMETER_DEFAULTS, LoraOp
from autotune.launch.shape import DTYPE_BYTES, KernelShape

#: ``tl.dot`` takes no tile side below 16, so 16 is what a smaller dimension is padded to.
SMALLEST_BLOCK = 16

#: What a kernel can be launched with: vLLM's default for rank 8 has a ``block_n`` of 8.
_SMALLEST = {"block_m": SMALLEST_BLOCK, "block_n": 8, "block_k": SMALLEST_BLOCK}

#: float32 accumulators a thread may hold. A thread has 255 registers; with 1,024 accumulators
#: ptxas did not end within a minute, and everything up to 256 compiled (H100, Triton 3.6).
MOST_ACCUMULATORS = 256

#: No launch parameter of a GPU kernel is larger: a block of 4,096 rows alone would be.
LARGEST_VALUE = 4096

#: A thread block has 1,024 threads at most, 32 to a warp.
MOST_WARPS = 32

#: Experts times adapters that vLLM wants for each (token, expert) pair before it sorts none.
_NAIVE_SPARSITY = 8

_BLOCKS = {"block_m", "block_n", "block_k"}
_POWERS_OF_TWO = _BLOCKS | {"num_warps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConfig:
    """One launch configuration; the parameters that its op does not have are None."""

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
        for name in table:
            if name not in op.parameters:
                raise SpaceError(
                    f"{op.value} has no parameter {name!r}; it has {', '.join(op.parameters)}"
                )
        values = {}
        defaults = MOE_DEFAULTS if op.is_moe else PARAMETER_DEFAULTS
        for name in op.parameters:
            value = table.get(name, defaults.get(name))
            if not _is_value(value):
                raise SpaceError(f"{name} must be 1 to {LARGEST_VALUE}: got {value!r}")
            values[name] = value
        return cls(**values)

    def as_dict(self) -> dict[str, int]:
        """The parameters that the op has, in the order in which they are written."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def _is_value(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_VALUE


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a configuration is not worth a trial: the rule's name and a reason to read."""

    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.reason}"


# --------------------------------------------------------------------------- static rules
# Each answers None, or the reason why the configuration is thrown out before it is compiled.


def next_power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()


def is_shrink(op: LoraOp) -> bool:
    """Whether an op goes from the model's size to the rank; the others go back."""
    return op in {LoraOp.SHRINK, LoraOp.W13_SHRINK, LoraOp.W2_SHRINK}


def matmul_sizes(shape: KernelShape) -> tuple[int, int, int]:
    """(m, n, k) of the largest matrix product that one slice of the shape makes.

    In a mixture of experts that is the product of one adapter's expert: a token goes to an expert
    once, so it has ``num_tokens`` rows at most, and a single one where blocks are assigned naively.
    """
    m = 1 if assigns_naively(shape) else shape.num_tokens
    outer = shape.hidden_size
    if shape.op in {LoraOp.W13_EXPAND, LoraOp.W2_SHRINK}:
        outer = shape.intermediate_size
    elif shape.op is LoraOp.W2_EXPAND:
        outer = shape.written_size
    return (m, shape.rank, outer) if is_shrink(shape.op) else (m, outer, shape.server_rank)


def assigns_naively(shape: KernelShape) -> bool:
    """Whether vLLM gives each (token, expert) pair a row of tiles of its own, and sorts nothing.

    So it does where the pairs are few beside the experts (``add_lora_w13`` in
    ``vllm/lora/punica_wrapper/punica_gpu.py``, 0.33.0), and never with fully sharded LoRAs or
    expert parallelism.
    """
    if not shape.op.is_moe or shape.fully_sharded or shape.global_experts > shape.num_experts:
        return False
    pairs = shape.num_tokens * shape.top_k
    return pairs * _NAIVE_SPARSITY <= shape.num_experts * shape.max_loras


def launched_rows(shape: KernelShape, block_m: int) -> int:
    """Rows that the tiles of one LoRA slot are launched for; most of a MoE op's are left at once.

    A dense op's are the tokens. A MoE op's are those that vLLM allocates: room for every (token,
    expert) pair to be in one adapter, with each expert's rows padded to whole blocks, those of
    experts on other devices too
    (``moe_lora_align_block_size`` in ``vllm/lora/punica_wrapper/punica_gpu.py``, 0.33.0).

    Args:
        shape: The shape.
        block_m: Rows of a tile.
    """
    if not shape.op.is_moe:
        return shape.num_tokens
    pairs = shape.num_tokens * shape.top_k
    if assigns_naively(shape) or pairs < shape.global_experts:
        return pairs * block_m
    return pairs + shape.global_experts * (block_m - 1)


def value_fault(name: str, value: int) -> str | None:
    """Why no kernel can be launched with this value of a parameter; None where one can."""
    smallest = _SMALLEST.get(name, 1)
    is_power = value > 0 and not value & (value - 1)
    if name in _POWERS_OF_TWO and (value < smallest or not is_power):
        return f"{name} must be a power of two of at least {smallest}: got {value}"
    if value < smallest:
        return f"{name} must be {smallest} or more: got {value}"
    if name == "num_warps" and value > MOST_WARPS:
        return f"{name} must be at most {MOST_WARPS}: got {value}"
    return None


def _power_of_two(_shape: KernelShape, config: KernelConfig) -> str | None:
    faults = (value_fault(name, getattr(config, name)) for name in sorted(_POWERS_OF_TWO))
    return next(filter(None, faults), None)


def block_limits(shape: KernelShape) -> dict[str, int]:
    """The largest block that each dimension of the shape can fill."""
    sizes = zip(("block_m", "block_n", "block_k"), matmul_sizes(shape), strict=True)
    return {name: max(SMALLEST_BLOCK, next_power_of_two(size)) for name, size in sizes}


def _block_within_dimension(shape: KernelShape, config: KernelConfig) -> str | None:
    for name, limit in block_limits(shape).items():
        if getattr(config, name) > limit:
            return f"{name} {getattr(config, name)} is larger than its whole dimension, {limit}"
    return None


def _split_within_depth(shape: KernelShape, config: KernelConfig) -> str | None:
    steps = -(-matmul_sizes(shape)[2] // config.block_k)
    if config.split_k is not None and config.split_k > next_power_of_two(steps):
        return f"split_k {config.split_k} leaves blocks with nothing to do: k has {steps} steps"
    return None


def _accumulators(_shape: KernelShape, config: KernelConfig) -> str | None:
    per_thread = config.block_m * config.block_n // (32 * config.num_warps)
    if per_thread > MOST_ACCUMULATORS:
        return f"{per_thread} float32 accumulators a thread, {MOST_ACCUMULATORS} at most"
    return None


_RULES: tuple[tuple[str, Callable[[KernelShape, KernelConfig], str | None]], ...] = (
    ("power_of_two", _power_of_two),
    ("block_within_dimension", _block_within_dimension),
    ("split_within_depth", _split_within_depth),
    ("accumulators", _accumulators),
)


def least_shared_memory_bytes(shape: KernelShape, config: KernelConfig) -> int:
    """Shared memory that the kernel needs at the least, bytes a block.

    A pipeline of ``num_stages`` keeps at least ``num_stages - 1`` tiles in flight. The MoE ops load
    their weights by addresses that the compiler knows nothing of, two bytes at a time, which it
    cannot pipeline, nor always x: there one tile of each is all that is certain.
    """
    bytes_each = DTYPE_BYTES[shape.dtype]
    if shape.op.is_moe:
        return (config.block_m + config.block_n) * config.block_k * bytes_each
    values = tile_values(shape.op, config.block_m, config.block_n, config.block_k)
    return (config.num_stages - 1) * values * bytes_each


def tile_values(op: LoraOp, block_m: int, block_n: int, block_k: int) -> int:
    """How many values one step of a dense op's pipeline brings into shared memory at the least.

    ``expand`` may hold its activations in registers, so only its weights are counted.
    """
    weights = block_k * block_n
    return weights + block_m * block_k if op is LoraOp.SHRINK else weights


def as_launched(
    shape: KernelShape, config: KernelConfig, forced: Mapping[str, int]
) -> KernelConfig:
    """What the kernel makes of a configuration: equal results are the same launch.

    ``group_size_m`` orders the tiles, so it changes nothing with one row or one column of them,
    nor beyond the number of rows.

    Args:
        shape: The shape that is launched.
        config: What was asked for.
        forced: Parameters that the kernel provider sets itself, whatever is asked for.
    """
    config = replace(config, **forced) if forced else config
    if config.group_size_m is None:
        return config
    rows = -(-launched_rows(shape, config.block_m) // config.block_m)
    columns = -(-matmul_sizes(shape)[1] // config.block_n)
    group = 1 if columns == 1 else min(config.group_size_m, rows)
    return replace(config, group_size_m=group)


# --------------------------------------------------------------------------- the space


def default_axes(op: LoraOp) -> dict[str, tuple[int, ...]]:
    """The values that are searched for each parameter of an op where nothing else is said.

    They hold the example space of vLLM's tuning guide (``README_TUNING.md``), vLLM's own defaults
    (``block_n`` 16, among others) and the values next to both. What runs over the rank, which may
    be 16, has a ``block_k`` that starts there.
    """
    deep = (32, 64, 128, 256)
    axes: dict[str, tuple[int, ...]] = {
        "block_m": (16, 32, 64, 128, 256),
        "block_n": (16, 32, 64, 128, 256),
        "block_k": deep if is_shrink(op) else (16, *deep),
        "split_k": (1, 2, 4, 8, 16, 32, 64, 128),
        "group_size_m": (1, 4, 8, 16),
        "num_warps": (1, 2, 4, 8, 16),
        "num_stages": (1, 2, 3, 4, 5),
        "num_ctas": (1,),
    }
    if op.is_moe:
        # Every expert's rows are padded to whole blocks, and a block of weights serves one expert:
        # larger ones are mostly padding. The parts of a split are added up in the dtype, so more
        # of them cost digits; expand has none, whatever it is told.
        axes["block_m"] = (16, 32, 64, 128)
        axes["split_k"] = (1, 2, 4, 8, 16) if is_shrink(op) else (1,)
    return {name: axes[name] for name in op.parameters}


def complete_axes(op: LoraOp, given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The op's axes, with those that the user gave in place of the usual ones.

    Raises:
        SpaceError: An axis is unknown, empty, or holds something else than positive integers.
    """
    axes = default_axes(op)
    for name, values in given.items():
        if name not in axes:
            raise SpaceError(f"{op.value} has no axis {name!r}; it has {', '.join(axes)}")
        if not isinstance(values, list | tuple) or not values:
            raise SpaceError(f"axis {name} must be a list of values: got {values!r}")
        for value in values:
            if not _is_value(value):
                raise SpaceError(f"axis {name} takes 1 to {LARGEST_VALUE}: got {value!r}")
        axes[name] = tuple(sorted(set(values)))
    return axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A full grid of one shape and the static rules that thin it out.

    Attributes:
        shape: The shape to search for.
        axes: The values of every parameter of the shape's op, as ``complete_axes`` gives them.
        shared_memory_bytes: What a thread block may use on the device; None where not known.
        forced: Parameters that the kernel provider sets itself, whatever is asked for.
    """

    shape: KernelShape
    axes: Mapping[str, tuple[int, ...]]
    shared_memory_bytes: int | None = None
    forced: Mapping[str, int] = field(default_factory=dict)

    def points(self) -> Iterator[KernelConfig]:
        """Every configuration that no rule throws out, aliases included, in a fixed order."""
        limits = block_limits(self.shape)
        axes = [self._in_order(name, limits.get(name)) for name in self.axes]
        for values in itertools.product(*axes):
            config = KernelConfig(**dict(zip(self.axes, values, strict=True)))
            if self._broken_rule(config) is None:
                yield config

    def launch(self, config: KernelConfig) -> KernelConfig:
        """What the kernel makes of a configuration; equal results are aliases."""
        return as_launched(self.shape, config, self.forced)

    def rejection(self, config: KernelConfig) -> Rejection | None:
        """The first rule that a configuration breaks."""
        for name, values in self.axes.items():
            if getattr(config, name) not in values:
                return Rejection("outside_axes", f"{name} {getattr(config, name)} is not searched")
        return self._broken_rule(config)

    def _in_order(self, name: str, limit: int | None) -> list[int]:
        """The values of one axis that can be valid, vLLM's default first: it names the aliases."""
        usual = PARAMETER_DEFAULTS.get(name)
        values = [value for value in self.axes[name] if limit is None or value <= limit]
        return sorted(values, key=lambda value: (value != usual, value))

    def _broken_rule(self, config: KernelConfig) -> Rejection | None:
        for name, rule in _RULES:
            reason = rule(self.shape, config)
            if reason is not None:
                return Rejection(name, reason)
        needed = least_shared_memory_bytes(self.shape, self.launch(config))
        if self.shared_memory_bytes is not None and needed > self.shared_memory_bytes:
            limit = self.shared_memory_bytes
            return Rejection("shared_memory", f"needs {needed} bytes a block, {limit} are there")
        return None


class SearchSpace:
    """The configurations of one shape that are worth a trial, each launch once.

    Attributes:
        shape: The shape.
        default: vLLM's own configuration: always one of them, even where a rule objects.
        configs: The configurations, without aliases, the default first, in a fixed order.
        axes: Per parameter the values in use, ascending.
    """

    def __init__(
        self,
        shape: KernelShape,
        configs: Iterable[KernelConfig],
        *,
        default: KernelConfig,
        grid: Grid | None = None,
    ) -> None:
        """Collect configurations; of those that launch alike the first stays.

        Args:
            shape: The shape.
            configs: The valid configurations.
            default: vLLM's configuration for the shape.
            grid: Knows aliases and the reasons of rejections; None for a recording, which holds
                each launch once and whose space is what was recorded.

        Raises:
            SpaceError: No configuration is left.
        """
        self.shape, self.default, self._grid = shape, default, grid
        self._canonical = {self._launch(default): default}
        valid = [self._canonical.setdefault(self._launch(config), config) for config in configs]
        if not valid:
            raise SpaceError(
                f"no valid configuration for {shape.op.value} {shape.label}: "
                "widen its axes in the study file"
            )
        self.configs = tuple(dict.fromkeys([default, *valid]))
        tables = [config.as_dict() for config in self.configs]
        self.axes = {
            name: tuple(sorted({table[name] for table in tables})) for name in shape.op.parameters
        }

    @classmethod
    def of_grid(cls, grid: Grid, *, default: KernelConfig) -> SearchSpace:
        """Every valid configuration of a grid.

        Raises:
            SpaceError: No configuration is valid.
        """
        return cls(grid.shape, grid.points(), default=default, grid=grid)

    def canonical(self, config: KernelConfig) -> KernelConfig:
        """The one configuration that stands for every alias of ``config``."""
        return self._canonical.get(self._launch(config), config)

    def rejection(self, config: KernelConfig) -> Rejection | None:
        """Why a configuration is not worth a trial, or None where it is."""
        if self._launch(config) in self._canonical:
            return None
        if self._grid is None:
            return Rejection("not_recorded", "the recording does not hold this configuration")
        return self._grid.rejection(config)

    def _launch(self, config: KernelConfig) -> KernelConfig:
        return config if self._grid is None else self._grid.launch(config)
