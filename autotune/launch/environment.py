"""Where something was measured: the GPU, the versions, and whose kernels were launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from autotune.errors import RecordingError, shown

_T = TypeVar("_T")

#: Characters of a name or a version. The GPU's name becomes part of a file's name.
_LONGEST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What two measurements must share to be comparable.

    Attributes:
        gpu: The GPU's name as ``torch.cuda.get_device_name()`` gives it.
        provider: Whose kernels were launched: ``builtin`` or ``vllm``.
        provider_version: Version of those kernels.
        torch: PyTorch's version.
        triton: Triton's version.
        driver: The NVIDIA driver's version.
    """

    gpu: str
    provider: str
    provider_version: str
    torch: str
    triton: str
    driver: str

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Environment:
        """Read an environment from a recording or the store; unknown keys are passed over.

        Raises:
            RecordingError: A key is missing, or its value is no text of 1 to 200 characters that
                can be printed.
        """
        if not isinstance(table, Mapping):
            raise RecordingError(f"the environment must be an object: got {shown(table)}")
        names = [field.name for field in fields(cls)]
        for name in names:
            value = table.get(name)
            if (
                not isinstance(value, str)
                or not 0 < len(value) <= _LONGEST
                or not value.isprintable()
            ):
                raise RecordingError(
                    f"the environment's {name} must be 1 to {_LONGEST} printable characters: "
                    f"got {shown(value)}"
                )
        return cls(**{name: table[name] for name in names})

    @property
    def kernels(self) -> str:
        """The kernels, as a study's name has them: ``vllm-0.33.0``, or ``builtin``."""
        return f"vllm-{self.provider_version}" if self.provider == "vllm" else self.provider

    def is_like(self, other: Environment) -> bool:
        """Whether the GPU and the kernel provider are the same; the versions may differ."""
        return (self.gpu, self.provider) == (other.gpu, other.provider)

    def as_dict(self) -> dict[str, str]:
        """The environment as JSON-ready values."""
        return asdict(self)

    def difference(self, other: Environment) -> str:
        """What differs, as ``triton 3.6.0, here 3.7.0``; empty if nothing does."""
        theirs = other.as_dict()
        return "; ".join(
            f"{name} {value}, here {theirs[name]}"
            for name, value in self.as_dict().items()
            if value != theirs[name]
        )


def by_environment(
    items: Iterable[_T], environment_of: Callable[[_T], Environment]
) -> dict[Environment, list[_T]]:
    """Items grouped by where they were measured, in their order."""
    groups: dict[Environment, list[_T]] = {}
    for item in items:
        groups.setdefault(environment_of(item), []).append(item)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The properties of a GPU that decide which kernel is compiled for a launch.

    Attributes:
        capability: Compute capability, such as ``(9, 0)``.
        multiprocessors: Number of multiprocessors, by which vLLM's MoE kernels split their work.
        shared_memory_bytes: What one thread block may use, opt-in included.
    """

    capability: tuple[int, int]
    multiprocessors: int
    shared_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The limits of one GPU that decide what can be launched and how it must be timed.

    Attributes:
        name: As ``torch.cuda.get_device_name()`` gives it.
        capability: Compute capability, such as ``(9, 0)``.
        multiprocessors: Number of multiprocessors.
        shared_memory_bytes: What one thread block may use, opt-in included.
        l2_bytes: Size of the L2 cache.
        memory_bytes: Size of the device's memory.
        uuid: Tells it from other GPUs of the same name.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory_bytes: int
    l2_bytes: int
    memory_bytes: int
    uuid: str

    @property
    def target(self) -> Target:
        """The properties that compiling depends on."""
        return Target(
            capability=self.capability,
            multiprocessors=self.multiprocessors,
            shared_memory_bytes=self.shared_memory_bytes,
        )
