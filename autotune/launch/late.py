"""Kernels that a server compiles late: while it serves, as its start launched none like them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from autotune.launch.binary import Binary, binary_of
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.release import NEWEST_RELEASE
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes

#: A shape with its configuration.
Launch = tuple[KernelShape, KernelConfig]

#: Places of late kernels that a message names; it counts the others.
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedKernel:
    """A kernel in a server, with the configurations that it is launched with.

    Attributes:
        kind: The kernel, ``without_batch``.
        sizes: The batch sizes that it is launched at.
        rows: Batch sizes from one of which to the next the configuration changes once, in the
            middle, such as those that have a row; at least one.
        config_at: The configuration at a batch size; None where that is not known.
    """

    kind: KernelShape
    sizes: WarmedSizes
    rows: Collection[int]
    config_at: Callable[[int], KernelConfig | None]

    def launches(self, sizes: Iterable[int]) -> list[Launch]:
        """The kernel at batch sizes, with its configuration there."""
        found = ((replace(self.kind, num_tokens=size), self.config_at(size)) for size in sizes)
        return [(shape, config) for shape, config in found if config is not None]

    @property
    def later(self) -> list[int]:
        """The batch sizes after the start, one at least for every compiled kernel."""
        by_row = self.sizes.later_of_rows(self.rows)
        return sorted({size for sizes in by_row.values() for size in sizes})


@dataclass(frozen=True, slots=True)
class Compiled:
    """The compiled kernels that a server launches, each with the first launch that needs it.

    Attributes:
        warmed: Those that its start launches.
        late: Those that it compiles afterwards.
    """

    warmed: Mapping[Binary, Launch]
    late: Mapping[Binary, Launch]

    @classmethod
    def of(
        cls,
        kernels: Collection[ServedKernel],
        *,
        release: str = NEWEST_RELEASE,
        target: Target | None = None,
    ) -> Compiled:
        """What a server compiles.

        Args:
            kernels: All kernels of the server: one may be launched at the start for another layer.
            release: vLLM's version.
            target: The GPU; None for an H100.
        """

        def launched(sizes: Callable[[ServedKernel], Iterable[int]]) -> dict[Binary, Launch]:
            found: dict[Binary, Launch] = {}
            for kernel in kernels:
                for launch in kernel.launches(sizes(kernel)):
                    binary = binary_of(*launch, release=release, target=target)
                    found.setdefault(binary, launch)
            return found

        warmed = launched(lambda kernel: kernel.sizes.warmed)
        later = launched(lambda kernel: kernel.later)
        return cls(warmed, {each: one for each, one in later.items() if each not in warmed})

    def late_text(self) -> str:
        """Where kernels are compiled late, such as ``shrink m=1024,k=4096,n=16 …; and 2 more``."""
        places = dict.fromkeys(f"{shape.op.value} {shape.label}" for shape, _ in self.late.values())
        named = list(places)[:_MOST_NAMED]
        more = [f"and {len(places) - _MOST_NAMED} more"] if len(places) > _MOST_NAMED else []
        return "; ".join([*named, *more])
