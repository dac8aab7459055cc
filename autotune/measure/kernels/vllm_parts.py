"""Finding vLLM's modules, and running them up to a launch on a machine without a device."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from triton.runtime.jit import KernelInterface

from autotune.errors import KernelsUnusable
from autotune.launch.environment import Target
from autotune.launch.release import NEWEST_RELEASE, OLDEST_RELEASE
from autotune.measure.cuda.gpu import describe_device

#: Where vLLM's LoRA kernels are.
PACKAGE = "vllm.lora.ops.triton_ops"

#: vLLM imports it first of all, for its patches alone.
_PATCHES = "vllm.env_override"

#: Called in place of a launch, with the kernel, the grid, and the positional and named arguments.
Launcher = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]


def import_vllm() -> str:
    """Import the installed vLLM and return its release.

    Raises:
        KernelsUnusable: vLLM is not installed, or cannot be imported.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it logs every default that it takes
    try:
        with _without_compiler_patches():
            vllm = importlib.import_module("vllm")
        version: str = vllm.__version__
        _settle_platform(importlib.import_module("vllm.platforms"))
    except ImportError as error:
        raise KernelsUnusable(
            f"cannot import vLLM ({error}); install it here, or take --kernels builtin"
        ) from error
    return version


@contextmanager
def _without_compiler_patches() -> Iterator[None]:
    """Leave out what vLLM patches in ``torch.compile``, which no launch here goes through.

    To patch it vLLM imports TorchInductor: 5.9 of the 10 s that the import of its kernels took
    (H100, vLLM 0.33.0). Whoever imports the patches later gets them.
    """
    if _PATCHES in sys.modules:
        yield
        return
    sys.modules[_PATCHES] = ModuleType(_PATCHES)
    try:
        yield
    finally:
        del sys.modules[_PATCHES]


def _settle_platform(platforms: ModuleType) -> None:
    """Leave vLLM without a platform if its platform needs compiled parts that are missing."""
    try:
        getattr(platforms, "current_platform")  # noqa: B009 - vLLM computes it when it is read
    except ImportError:
        vars(platforms)["_current_platform"] = platforms.interface.UnspecifiedPlatform()


def part(name: str) -> ModuleType:
    """Import a module of vLLM's kernels.

    Raises:
        KernelsUnusable: The module cannot be imported.
    """
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    except ImportError as error:
        raise unusable(str(error)) from error
    _tell_of_device(module)
    return module


def _tell_of_device(module: ModuleType) -> None:
    """Answer what a module asks about the device, if vLLM lacks the compiled parts to do so."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return
    target = describe_device().target
    if hasattr(module, "current_platform") and not module.current_platform.is_cuda():
        vars(module)["current_platform"] = TargetPlatform(target)
    tell = partial(_shared_memory_bytes, target)  # vLLM's is a compiled operation
    if hasattr(module, "get_max_shared_memory_bytes"):
        vars(module)["get_max_shared_memory_bytes"] = tell


def attribute(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - whatever vLLM has there
    """An attribute of a module of vLLM's.

    Raises:
        KernelsUnusable: The module has no such attribute.
    """
    if not hasattr(module, name):
        raise unusable(f"{module.__name__} has no {name}")
    return getattr(module, name)


def triton_kernel(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - triton ships no types
    """A Triton kernel of vLLM's.

    Raises:
        KernelsUnusable: There is no such kernel, or vLLM has replaced it, as it does where it finds
            no Triton.
    """
    kernel = attribute(module, name)
    if not isinstance(kernel, KernelInterface):
        raise unusable(f"it has turned Triton off, {name} is no Triton kernel")
    return kernel


def known_parameters(function: Callable[..., object], known: Sequence[str]) -> tuple[str, ...]:
    """The names of a function's parameters.

    Raises:
        KernelsUnusable: A parameter is not among the known ones.
    """
    taken = tuple(inspect.signature(function).parameters)
    unknown = [name for name in taken if name not in known]
    if unknown:
        raise unusable(f"{function.__name__} takes {', '.join(unknown)}")
    return taken


def unusable(what: str) -> KernelsUnusable:
    """The error for a release that differs from the known ones."""
    version = importlib.import_module("vllm").__version__
    return KernelsUnusable(
        f"cannot drive the kernels of vLLM {version}: {what}; {OLDEST_RELEASE} to "
        f"{NEWEST_RELEASE} are known to work, and --kernels builtin needs none"
    )


@contextmanager
def replaced(module: ModuleType, **stand_ins: object) -> Iterator[None]:
    """Replace attributes of a module within a ``with`` block."""
    kept = {name: getattr(module, name) for name in stand_ins}
    vars(module).update(stand_ins)
    try:
        yield
    finally:
        vars(module).update(kept)


class KernelStandIn:
    """Stands in for a kernel in its module: ``kernel[grid](...)`` calls the launcher."""

    def __init__(self, kernel: Any, launcher: Launcher) -> None:  # noqa: ANN401 - as above
        self._launcher = partial(launcher, kernel)

    def __getitem__(self, grid: Any) -> Callable[..., None]:  # noqa: ANN401 - a tuple or a function
        def launch(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 - what vLLM passes
            blocks = grid(named) if callable(grid) else grid
            self._launcher(tuple(blocks), arguments, named)

        return launch


class TargetPlatform:
    """Answers what vLLM's wrappers ask the platform, for a device that need not be present."""

    def __init__(self, target: Target) -> None:
        self._number, self._target = _as_number(target.capability), target

    def is_cuda(self) -> bool:
        """True: the target is a CUDA device."""
        return True

    def is_cuda_alike(self) -> bool:
        """True: the target is a CUDA device."""
        return True

    def is_xpu(self) -> bool:
        """False: the target is a CUDA device."""
        return False

    def num_compute_units(self, _device: int | None = None) -> int:
        """The target's number of multiprocessors."""
        return self._target.multiprocessors

    def is_device_capability(self, capability: int | tuple[int, int]) -> bool:
        """Whether the target has exactly this compute capability, such as 90 or ``(9, 0)``."""
        return self._number == _as_number(capability)

    def has_device_capability(self, capability: int | tuple[int, int]) -> bool:
        """Whether the target has at least this compute capability."""
        return self._number >= _as_number(capability)


def _as_number(capability: int | tuple[int, int]) -> int:
    return capability if isinstance(capability, int) else 10 * capability[0] + capability[1]


def answers_for(target: Target) -> dict[str, object]:
    """Stand-ins, by name, for what vLLM's modules use to learn about a device."""
    return {
        "current_platform": TargetPlatform(target),
        "get_max_shared_memory_bytes": partial(_shared_memory_bytes, target),
        "async_tensor_h2d": table_without_memory,
    }


def _shared_memory_bytes(target: Target, _device: int | None = None) -> int:
    return target.shared_memory_bytes


def table_without_memory(data: Sequence[int], dtype: torch.dtype, **_: object) -> torch.Tensor:
    """Called in place of vLLM's copy of a list to the device."""
    return torch.empty(len(data), dtype=dtype, device="meta")  # (num_slices,)
