"""SearchSpace: which launch configurations of a shape are worth a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autotune.errors import SpaceError, shown
from autotune.launch.config import LARGEST_VALUE, KernelConfig, is_value
from autotune.launch.op import PARAMETER_DEFAULTS, LoraOp
from autotune.launch.shape import DTYPE_BYTES, KernelShape
from autotune.launch.sizes import (
    MOST_ACCUMULATORS,
    SMALLEST_BLOCK,
    MatmulSizes,
    block_limits,
    is_shrink,
    launched_rows,
    least_shared_memory_bytes,
    matmul_sizes,
    next_power_of_two,
)

#: The smallest blocks that a kernel runs with: vLLM's default for rank 8 has a ``block_n`` of 8.
_SMALLEST = {"block_m": SMALLEST_BLOCK, "block_n": 8, "block_k": SMALLEST_BLOCK}

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


# --------------------------------------------------------------------------- static rules
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


# --------------------------------------------------------------------------- the space


def default_axes(op: LoraOp) -> dict[str, tuple[int, ...]]:
    """The values to search for each parameter of an op, unless the user gives others.

    They hold the example space of vLLM's tuning guide (``README_TUNING.md``), vLLM's own defaults
    (``block_n`` 16, among others) and the values next to both. Ops that sum over the rank have a
    ``block_k`` from 16 on, since the rank may be 16.
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
        # Every expert's rows are padded to whole blocks, and larger blocks are mostly padding. The
        # parts of a split are added up in the dtype, so a larger split loses digits; expand never
        # splits, whatever its configuration says.
        axes["block_m"] = (16, 32, 64, 128)
        axes["split_k"] = (1, 2, 4, 8, 16) if is_shrink(op) else (1,)
    return {name: axes[name] for name in op.parameters}


def complete_axes(op: LoraOp, given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The op's axes: the default ones, replaced by those that the user gave.

    Raises:
        SpaceError: An axis is unknown or empty, or a value is no integer in the allowed range.
    """
    axes = default_axes(op)
    for name, values in given.items():
        if name not in axes:
            raise SpaceError(f"{op.value} has no axis {shown(name)}; it has {', '.join(axes)}")
        if not isinstance(values, list | tuple) or not values:
            raise SpaceError(f"axis {name} must be a list of values: got {shown(values)}")
        for value in values:
            if not is_value(value):
                raise SpaceError(f"axis {name} takes 1 to {LARGEST_VALUE}: got {shown(value)}")
        axes[name] = tuple(sorted(set(values)))
    return axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A full grid of one shape, which the static rules thin out.

    Attributes:
        shape: The shape to search for.
        axes: The values of every parameter of the shape's op, as ``complete_axes`` gives them.
        shared_memory_bytes: What a thread block may use on the device; None if not known.
        forced: Parameters that the kernel provider sets itself, whatever the configuration says.
    """

    shape: KernelShape
    axes: Mapping[str, tuple[int, ...]]
    shared_memory_bytes: int | None = None
    forced: Mapping[str, int] = field(default_factory=dict)

    def launches(self) -> Mapping[KernelConfig, KernelConfig]:
        """Every launch that no rule throws out, in a fixed order, each once.

        The rules are those of ``rejection``, for all points of the grid at once: a grid has up to
        20,000 points, and a run up to hundreds of grids, many of them alike.

        Returns:
            The first configuration of each launch, with the configuration that is launched.
        """
        from autotune.launch.grid import launches  # numpy takes long to import

        sizes = matmul_sizes(self.shape)
        limits = block_limits(sizes)
        axes = {
            name: tuple(
                value
                for value in self._in_order(name, limits.get(name))
                if not value_fault(name, value)
            )
            for name in self.axes
        }
        splits = {k: next_power_of_two(-(-sizes[2] // k)) for k in axes["block_k"]}
        return launches(
            self.shape.op,
            tuple(axes.items()),
            tuple(sorted(self.forced.items())),
            tuple(splits.items()) if "split_k" in axes else (),
            tuple(self._groups(axes, sizes[1])) if "group_size_m" in axes else (),
            (DTYPE_BYTES[self.shape.dtype], self.shared_memory_bytes),
        )

    def _groups(
        self, axes: Mapping[str, Sequence[int]], columns: int
    ) -> Iterator[tuple[tuple[int, int], int]]:
        """For every ``block_m`` and ``block_n``, the largest ``group_size_m`` that differs."""
        most = max(axes["group_size_m"], default=1)
        for block_m in axes["block_m"]:
            rows = -(-launched_rows(self.shape, block_m) // block_m)
            for block_n in axes["block_n"]:
                group = 1 if -(-columns // block_n) == 1 else min(rows, most)
                yield (block_m, block_n), group

    def launch(self, config: KernelConfig) -> KernelConfig:
        """The configuration that is really launched; two with the same result are aliases."""
        return as_launched(self.shape, config, self.forced)

    def rejection(self, config: KernelConfig) -> Rejection | None:
        """The first rule that a configuration breaks."""
        for name, values in self.axes.items():
            if getattr(config, name) not in values:
                return Rejection("outside_axes", f"{name} {getattr(config, name)} is not searched")
        return self._broken_rule(config)

    def _in_order(self, name: str, limit: int | None) -> list[int]:
        """The values of one axis within its limit, vLLM's default first.

        Of configurations that launch alike the first stays, so aliases keep vLLM's value.
        """
        usual = PARAMETER_DEFAULTS.get(name)
        values = [value for value in self.axes[name] if limit is None or value <= limit]
        return sorted(values, key=lambda value: (value != usual, value))

    def _broken_rule(self, config: KernelConfig) -> Rejection | None:
        broken = next(broken_rules(config, matmul_sizes(self.shape)), None)
        return broken or memory_rejection(
            self.shape.op,
            self.launch(config),
            value_bytes=DTYPE_BYTES[self.shape.dtype],
            limit_bytes=self.shared_memory_bytes,
        )


class SearchSpace:
    """The configurations of one shape that are worth a trial, each launch once.

    Attributes:
        shape: The shape.
        default: vLLM's own configuration, which is always in the space, whatever the rules say.
        configs: The configurations, without aliases, the default first, in a fixed order.
        axes: The values of each parameter that occur, ascending.
    """

    def __init__(
        self,
        shape: KernelShape,
        configs: Iterable[KernelConfig] | Mapping[KernelConfig, KernelConfig],
        *,
        default: KernelConfig,
        grid: Grid | None = None,
        unread: Mapping[str, int] | None = None,
    ) -> None:
        """Collect configurations; of those that launch alike the first one stays.

        Args:
            shape: The shape.
            configs: The valid configurations; a mapping also says how each is launched.
            default: vLLM's configuration for the shape.
            grid: Finds aliases and reasons for rejections. None for a recording: it holds each
                launch once, and only what was recorded can be searched.
            unread: Parameters that vLLM does not read for the shape, with the default's values.
                Configurations that differ only in these are the same launch.

        Raises:
            SpaceError: No configuration is left.
        """
        self.shape, self.default, self._grid = shape, default, grid
        self._unread = dict(unread or {})
        self._canonical = {self._launch(default): default}
        launch = configs.__getitem__ if isinstance(configs, Mapping) else self._launch
        valid = [self._canonical.setdefault(launch(config), config) for config in configs]
        if not valid:
            raise SpaceError(
                f"no valid configuration for {shape.op.value} {shape.label}: "
                "widen its axes in the study file"
            )
        self.configs = tuple(dict.fromkeys([default, *valid]))
        self.axes = {
            name: tuple(sorted({getattr(config, name) for config in self.configs}))
            for name in shape.op.parameters
        }

    @classmethod
    def of_grid(cls, grid: Grid, *, default: KernelConfig) -> SearchSpace:
        """Every valid configuration of a grid.

        Raises:
            SpaceError: No configuration is valid.
        """
        return cls(grid.shape, grid.launches(), default=default, grid=grid)

    def with_unread(self, unread: Mapping[str, int]) -> SearchSpace:
        """The same configurations, where vLLM reads none of the parameters in ``unread``."""
        return SearchSpace(
            self.shape, self.configs, default=self.default, grid=self._grid, unread=unread
        )

    def canonical(self, config: KernelConfig) -> KernelConfig:
        """The one configuration that stands for every alias of ``config``."""
        return self._canonical.get(self._launch(config), config)

    def rejection(self, config: KernelConfig) -> Rejection | None:
        """Why a configuration is not worth a trial; None if it is."""
        if self._launch(config) in self._canonical:
            return None
        if self._grid is None:
            return Rejection("not_recorded", "the recording does not hold this configuration")
        return self._grid.rejection(config)

    def _launch(self, config: KernelConfig) -> KernelConfig:
        config = replace(config, **self._unread) if self._unread else config
        return config if self._grid is None else self._grid.launch(config)
