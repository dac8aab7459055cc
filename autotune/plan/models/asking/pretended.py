"""A GPU and a group of GPUs that are not there, for vLLM to build a model for.

Nothing is computed: every tensor lies on torch's meta device, which has sizes and no memory. So
vLLM can be told of an H100 on a machine without a GPU, and of a group of any size in one process.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: What the GPU is said to be: an H100, which all of vLLM's kernels for LoRA run on.
_CAPABILITY = (9, 0)
_NAME = "NVIDIA H100 80GB HBM3"
_MEMORY_BYTES = 80 * 2**30
_MULTIPROCESSORS = 132

#: More than any group of GPUs has.
_MOST_GPUS = 2**16


class Nothing:
    """Answers every call and every attribute with itself."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take whatever is given."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - anything goes
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *_: object, **__: object) -> Any:  # noqa: ANN401 - anything goes
        """Nothing again."""
        return Nothing()

    def __enter__(self) -> Any:  # noqa: ANN401 - anything goes
        """Nothing again."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what never began."""


class OnMeta(TorchFunctionMode):
    """Makes every tensor on the meta device, but for those that are asked for on the CPU."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - a function of torch
        types: Any,  # noqa: ANN401 - as torch calls it
        args: Any = (),  # noqa: ANN401 - the function's
        kwargs: Any = None,  # noqa: ANN401 - the function's
    ) -> Any:  # noqa: ANN401 - the function's
        """Call a function of torch with ``meta`` for every CUDA device."""
        args = tuple(_elsewhere(each) for each in args)
        kwargs = {key: _elsewhere(each) for key, each in (kwargs or {}).items()}
        if isinstance(kwargs.get("device"), int):  # a CUDA device's number
            kwargs["device"] = torch.device("meta")
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        if func in _READING and args[0].is_meta:
            args = (_without_value(args[0]), *args[1:])
        return func(*args, **kwargs)


#: What reads a tensor's values, which there are none of on the meta device.
_READING = frozenset(
    getattr(torch.Tensor, name)
    for name in ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
)


def _without_value(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def _elsewhere(value: object) -> object:
    is_cuda = isinstance(value, torch.device) and value.type == "cuda"
    is_named_so = isinstance(value, str) and value.partition(":")[0] == "cuda"
    return torch.device("meta") if is_cuda or is_named_so else value


def pretend_gpu() -> None:
    """Tell vLLM that there is an H100, before anything of vLLM is used."""
    _leave_compiled_out()
    platforms: Any = import_module("vllm.platforms")
    cuda: Any = import_module("vllm.platforms.cuda")
    interface: Any = import_module("vllm.platforms.interface")
    said = {
        "get_device_capability": interface.DeviceCapability(*_CAPABILITY),
        "get_device_name": _NAME,
        "get_device_total_memory": _MEMORY_BYTES,
        "is_fully_connected": True,
        "device_count": _MOST_GPUS,
        "num_compute_units": _MULTIPROCESSORS,
        "import_kernels": None,
        "import_ir_kernels": None,
    }
    answers: dict[str, Any] = {name: classmethod(_answering(value)) for name, value in said.items()}
    platforms._current_platform = type("PretendedGpu", (cuda.NonNvmlCudaPlatform,), answers)()  # noqa: SLF001 - vLLM has no other way
    _pretend_torch_cuda()
    _pretend_triton()
    _pretend_ops()


def _leave_compiled_out() -> None:
    """Stand in for what vLLM has compiled: it needs CUDA's driver to be loaded."""
    vllm = importlib.util.find_spec("vllm")
    root = Path(str(vllm.origin)).parent if vllm else Path()
    for file in root.rglob("*.so"):
        name = file.name.partition(".")[0]
        whole = ".".join((root.name, *file.parent.relative_to(root).parts, name))
        module: Any = types.ModuleType(whole)
        module.__getattr__ = _absent
        sys.modules[whole] = module


def _absent(name: str) -> Any:  # noqa: ANN401 - anything goes
    if name.startswith("__"):
        raise AttributeError(name)
    return Nothing()


def _answering(value: object) -> Any:  # noqa: ANN401 - a function
    return lambda _platform, *_args, **_kwargs: value


def _pretend_torch_cuda() -> None:
    """Streams and events that do nothing, and the H100's properties."""
    properties = types.SimpleNamespace(
        name=_NAME,
        major=_CAPABILITY[0],
        minor=_CAPABILITY[1],
        multi_processor_count=_MULTIPROCESSORS,
        total_memory=_MEMORY_BYTES,
        shared_memory_per_block_optin=227 * 2**10,
    )
    cuda: Any = torch.cuda
    for name in ("Stream", "Event", "ExternalStream"):
        setattr(cuda, name, Nothing)
    for name in ("current_stream", "stream", "set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, Nothing())
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: _MOST_GPUS
    cuda.get_device_properties = lambda *_: properties
    cuda.get_device_capability = lambda *_: _CAPABILITY
    cuda.get_device_name = lambda *_: _NAME


def _pretend_triton() -> None:
    """A driver that knows the H100, and compiles nothing."""
    triton: Any = import_module("triton")
    compiler: Any = import_module("triton.backends.compiler")
    driver: Any = Nothing()
    driver.get_current_target = lambda: compiler.GPUTarget("cuda", 90, 32)
    triton.runtime.driver.set_active(driver)


def _pretend_ops() -> None:
    """Compiled ops of vLLM that cannot be loaded without CUDA's driver are there by name."""
    namespace: Any = torch._ops._OpNamespace  # noqa: SLF001 - torch has no other way
    found = namespace.__getattr__

    def op(self: Any, name: str) -> Any:  # noqa: ANN401 - an op
        try:
            return found(self, name)
        except AttributeError:
            if not str(self.name).startswith(("_C", "_moe_C", "_vllm", "_qutlass", "_flashmla")):
                raise
            return Nothing()

    namespace.__getattr__ = op
    library: Any = torch.library
    register = library.register_fake

    def register_if_there(name: Any, *more: Any, **kinds: Any) -> Any:  # noqa: ANN401 - as torch
        decorate = register(name, *more, **kinds)

        def decorated(function: Any) -> Any:  # noqa: ANN401 - as torch
            try:
                return decorate(function)
            except RuntimeError:  # no such op
                return function

        return decorated

    library.register_fake = register_if_there


class _ProcessGroup:
    """What torch knows of a group."""

    def __init__(self, size: int) -> None:
        self._size = size

    def size(self) -> int:
        """How many processes are in it."""
        return self._size

    def rank(self) -> int:
        """The number of this one."""
        return 0


class _Group:
    """A group of GPUs, of which this process is the first."""

    def __init__(self, size: int) -> None:
        self.world_size = size
        self.ranks = list(range(size))
        self.rank = self.rank_in_group = self.local_rank = self.first_rank = 0
        self.last_rank = size - 1
        self.is_first_rank = True
        self.is_last_rank = size == 1
        self.next_rank = self.prev_rank = 0
        self.device = torch.device("meta")
        self.use_custom_op_call = False
        self.device_group = self.cpu_group = _ProcessGroup(size)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what only a real group has
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


def pretend_groups(tensor_parallel: int, data_parallel: int) -> None:
    """Tell vLLM which groups of GPUs are running; all others are of this process alone.

    Args:
        tensor_parallel: The GPUs that divide a model.
        data_parallel: The servers that share experts.
    """
    everywhere = tensor_parallel * data_parallel
    sizes = {
        **dict.fromkeys(("_TP", "_WORLD", "_ETP"), tensor_parallel),
        **dict.fromkeys(("_EP", "_EPLB"), everywhere),
        "_DP": data_parallel,
    }
    state: Any = import_module("vllm.distributed.parallel_state")
    for name, kind in state.__annotations__.items():
        if name.startswith("_") and "GroupCoordinator" in str(kind) and name != "_groups":
            setattr(state, name, _Group(sizes.get(name, 1)))
    workspace: Any = import_module("vllm.v1.worker.workspace")
    workspace.init_workspace_manager(torch.device("meta"))
