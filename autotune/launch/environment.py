"""Where something was measured: the GPU, the versions, and whose kernels were launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
        deterministic: Whether configurations that split k were left out. What is chosen then is for
            another server: it is kept beside what is chosen among all configurations.
    """

    gpu: str
    provider: str
    provider_version: str
    torch: str
    triton: str
    driver: str
    deterministic: bool = False

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Environment:
        """Read an environment from a recording or the store; unknown keys are passed over.

        Raises:
            RecordingError: A key is missing, or its value is no text of 1 to 200 characters that
                can be printed.
        """
        if not isinstance(table, Mapping):
            raise RecordingError(f"the environment must be an object: got {shown(table)}")
        for name in _TEXTS:
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
        return cls(
            **{name: table[name] for name in _TEXTS},
            deterministic=table.get("deterministic") is True,
        )

    @property
    def kernels(self) -> str:
        """The kernels, as a study's name has them: ``vllm-0.33.0``, or ``builtin``."""
        return f"vllm-{self.provider_version}" if self.provider == "vllm" else self.provider

    @property
    def title(self) -> str:
        """The kernels and what may be chosen: ``vllm-0.33.0``, or ``vllm-0.33.0-deterministic``."""
        return f"{self.kernels}-deterministic" if self.deterministic else self.kernels

    def is_like(self, other: Environment) -> bool:
        """Whether the GPU and the kernel provider are the same; the versions may differ."""
        return (self.gpu, self.provider) == (other.gpu, other.provider)

    def as_dict(self) -> dict[str, Any]:
        """The environment as JSON-ready values."""
        texts: dict[str, Any] = {name: getattr(self, name) for name in _TEXTS}
        return texts | ({"deterministic": True} if self.deterministic else {})

    def difference(self, other: Environment) -> str:
        """What differs, as ``triton 3.6.0, here 3.7.0``; empty if nothing does."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in _TEXTS)
        return "; ".join(
            f"{name} {mine}, here {theirs}" for name, mine, theirs in pairs if mine != theirs
        )


#: The fields that say where something was measured.
_TEXTS = ("gpu", "provider", "provider_version", "torch", "triton", "driver")


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
