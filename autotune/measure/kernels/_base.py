"""What a kernel provider is: whose kernels are compiled and launched."""

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
    """What the compiler says of a kernel.

    Attributes:
        shared_memory_bytes: Shared memory per thread block.
        registers: Registers per thread; None where the compiler does not say.
        spills: Registers spilled to local memory, per thread; None where it does not say.
        fingerprint: The same for two configurations whose launches cannot be told apart; None where
            that is not known.
    """

    shared_memory_bytes: int
    registers: int | None = None
    spills: int | None = None
    fingerprint: str | None = None


class KernelProvider(ABC):
    """Compiles and launches the kernels of one origin: ours, or an installed vLLM's.

    Attributes:
        name: ``builtin`` or ``vllm``.
        version: Changes whenever the kernels do: figures of two versions are not compared.
    """

    name: str
    version: str

    @abstractmethod
    def default(self, shape: KernelShape) -> KernelConfig:
        """What vLLM launches for the shape when no tuned file is given."""

    @abstractmethod
    def compile(self, shape: KernelShape, config: KernelConfig, target: Target) -> CompiledKernel:
        """Compile into Triton's cache; needs no GPU, and must not be given one.

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
        """Put what the last launch wrote into ``inputs.out``, where the kernels write elsewhere.

        It is no part of the op, and not timed.

        Args:
            inputs: The tensors that were launched with.
            config: The configuration that was launched.
        """

    def forced(self, shape: KernelShape, target: Target) -> Mapping[str, int]:
        """Parameters that the kernels set themselves there, whatever a configuration says."""
        return {}

    def runs_pair(self, shape: KernelShape) -> bool:
        """Whether one launch does the work of a MoE shape's shrink and of the expand after it.

        Its inputs are then those of ``make_inputs(..., pair=True)``, and its latency is that of
        both: the two shapes of the pair have the same.
        """
        return False
