"""KernelProvider: compiles and launches the kernels of one origin."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.launch.config import KernelConfig
from autotune.launch.environment import Target
from autotune.launch.shape import KernelShape

if TYPE_CHECKING:
    from autotune.measure.kernels.inputs import Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """What the compiler reports of a kernel.

    Attributes:
        shared_memory_bytes: Shared memory per thread block.
        registers: Registers per thread; None where the compiler does not report it.
        spills: Registers spilled to local memory, per thread; None where it does not report it.
        fingerprint: Equal for two configurations if their launches are the same; None where that
            is not known.
    """

    shared_memory_bytes: int
    registers: int | None = None
    spills: int | None = None
    fingerprint: str | None = None


class KernelProvider(ABC):
    """Compiles and launches the kernels of one origin: ours, or an installed vLLM's.

    Attributes:
        name: ``builtin`` or ``vllm``.
        version: Changes whenever the kernels do, since figures of two versions are not compared.
    """

    name: str
    version: str

    @abstractmethod
    def default(self, shape: KernelShape) -> KernelConfig:
        """The configuration that vLLM launches for the shape without a tuned file."""

    @abstractmethod
    def compile(self, shape: KernelShape, config: KernelConfig, target: Target) -> CompiledKernel:
        """Compile into Triton's cache, in a process without a GPU that will never launch.

        A later ``launch`` of the same shape and configuration in another process finds the compiled
        kernel there.

        Args:
            shape: The shape.
            config: The configuration.
            target: The GPU to compile for.

        Raises:
            Exception: Whatever the compiler raises.
        """

    @abstractmethod
    def launch(self, inputs: Inputs, config: KernelConfig, weight_set: int) -> None:
        """Enqueue the op once on the current stream, as vLLM's wrapper does.

        Args:
            inputs: The tensors of the shape.
            config: The configuration.
            weight_set: Which of the rotating weight sets is read.

        Raises:
            Exception: Whatever the launcher raises, such as ``OutOfResources``.
        """

    def collect(self, inputs: Inputs, config: KernelConfig) -> None:  # noqa: B027 - most need not
        """Copy the result of the last launch to ``inputs.out``, if the kernels write elsewhere.

        This is not part of the op, and not timed.

        Args:
            inputs: The tensors that were launched with.
            config: The configuration that was launched.
        """

    def forced(self, shape: KernelShape, target: Target) -> Mapping[str, int]:
        """Parameters that the kernels set themselves, whatever the configuration says."""
        return {}

    def runs_pair(self, shape: KernelShape) -> bool:
        """Whether one launch does a MoE shape's shrink and the expand after it.

        The inputs of such a launch are those of ``make_inputs(..., pair=True)``. Its latency counts
        for both shapes of the pair.
        """
        return False
