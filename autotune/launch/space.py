"""SearchSpace: which launch configurations of a shape are worth a trial."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.errors import SpaceError, shown
from autotune.launch.config import LARGEST_VALUE, KernelConfig, is_value
from autotune.launch.listing import Listing, listing_of
from autotune.launch.op import PARAMETER_DEFAULTS, LoraOp
from autotune.launch.rules import (
    Rejection,
    as_launched,
    broken_rules,
    memory_rejection,
    value_fault,
)
from autotune.launch.shape import DTYPE_BYTES, KernelShape
from autotune.launch.sizes import (
    block_limits,
    is_shrink,
    launched_rows,
    matmul_sizes,
    next_power_of_two,
)


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

    def listing(self, default: KernelConfig) -> Listing:
        """The default, and every launch that no rule throws out, in a fixed order, each once.

        The rules are those of ``rejection``, for all points of the grid at once: a grid has up to
        100,000 points, and a run up to hundreds of grids, many of them alike.
        """
        return listing_of(self._terms(), (default, self.launch(default)))

    def _terms(self) -> tuple[Any, ...]:
        """All that the launches depend on, as ``grid.launches`` takes it."""
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
        return (
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
        listing: The same, with what is known of all of them.
        axes: The values of each parameter that occur, ascending.
        is_deterministic: Whether no configuration that splits k may be chosen. The default is there
            to compare with, even if it does.
    """

    def __init__(
        self,
        shape: KernelShape,
        configs: Iterable[KernelConfig] | Listing,
        *,
        default: KernelConfig,
        grid: Grid | None = None,
        unread: Mapping[str, int] | None = None,
    ) -> None:
        """Collect configurations; of those that launch alike the first one stays.

        Args:
            shape: The shape.
            configs: The valid configurations; a listing also says how each is launched.
            default: vLLM's configuration for the shape.
            grid: Finds aliases and reasons for rejections. None for a recording: it holds each
                launch once, and only what was recorded can be searched.
            unread: Parameters that vLLM does not read for the shape, with the default's values.
                Configurations that differ only in these are the same launch.

        Raises:
            SpaceError: No configuration is left.
        """
        self.shape, self.default, self._grid = shape, default, grid
        self.is_deterministic = False
        self._unread = dict(unread or {})
        if not isinstance(configs, Listing):
            launches = ((config, self._launch(config)) for config in configs)
            configs = Listing((default, self._launch(default)), launches)
        if configs.is_empty:
            raise SpaceError(
                f"no valid configuration for {shape.op.value} {shape.label}: "
                "widen its axes in the study file"
            )
        self.listing, self.configs = configs, configs.configs
        self.axes = {name: configs.axes[name] for name in shape.op.parameters}

    @classmethod
    def of_grid(cls, grid: Grid, *, default: KernelConfig) -> SearchSpace:
        """Every valid configuration of a grid.

        Raises:
            SpaceError: No configuration is valid.
        """
        return cls(grid.shape, grid.listing(default), default=default, grid=grid)

    def with_unread(self, unread: Mapping[str, int]) -> SearchSpace:
        """The same configurations, where vLLM reads none of the parameters in ``unread``."""
        return SearchSpace(
            self.shape, self.configs, default=self.default, grid=self._grid, unread=unread
        )

    def without_splits(self) -> SearchSpace:
        """The configurations that do not split k, and the default to compare with.

        Raises:
            SpaceError: All configurations split k.
        """
        kept = [config for config in self.configs if not config.splits_k]
        if not kept:
            raise SpaceError(
                f"every configuration of {self.shape.op.value} {self.shape.label} splits k: "
                "widen its axes"
            )
        space = SearchSpace(
            self.shape, kept, default=self.default, grid=self._grid, unread=self._unread
        )
        space.is_deterministic = True
        return space

    def may_choose(self, config: KernelConfig) -> bool:
        """Whether a configuration of the space may be chosen, not only compared with."""
        return not (self.is_deterministic and config.splits_k)

    def canonical(self, config: KernelConfig) -> KernelConfig:
        """The one configuration that stands for every alias of ``config``."""
        return self.listing.canonical.get(self._launch(config), config)

    def rejection(self, config: KernelConfig) -> Rejection | None:
        """Why a configuration is not worth a trial; None if it is."""
        if self._launch(config) in self.listing.canonical:
            return None
        if self._grid is None:
            return Rejection("not_recorded", "the recording does not hold this configuration")
        return self._grid.rejection(config)

    def _launch(self, config: KernelConfig) -> KernelConfig:
        config = replace(config, **self._unread) if self._unread else config
        return config if self._grid is None else self._grid.launch(config)
