"""Puts a wrapper around a function of vLLM, wherever a release binds its name.

Every release defines such a function in one module, and other modules import the name from there:
some when they are imported, some at every call (vLLM 0.11.1 to 0.33.0). So the name is bound anew
as soon as that module has been imported, before others see it. vLLM loads plugins before its LoRA
modules, which must not be imported early: they import Triton and need the platform.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

#: Marks what is wrapped already.
_MARK = "__autotune_trace__"

#: What ``functools.lru_cache`` gives a function beside its call; vLLM's tests use it.
_OF_CACHES = ("cache_clear", "cache_info", "cache_parameters")

Function = Callable[..., Any]
#: Returns the wrapper of a function.
Wrap = Callable[[Function], Function]

_LOG = logging.getLogger(__name__)


class Target(NamedTuple):
    """A function of vLLM.

    Attributes:
        home: The module that defines it.
        name: Its name there, and in the modules that import it.
        without: What does not happen where it cannot be wrapped.
    """

    home: str
    name: str
    without: str


#: The look-up of a tuned entry.
LOOK_UP = Target(
    "vllm.lora.ops.triton_ops.utils", "get_lora_op_configs", without="nothing is traced"
)

#: What a worker runs after its first steps and before it captures CUDA graphs.
WARM_UP = Target(
    "vllm.model_executor.warmup.kernel_warmup",
    "kernel_warmup",
    without="nothing more is launched at the start",
)


def watch(target: Target, make: Callable[[], Wrap]) -> None:
    """Wrap a function now, or as soon as vLLM imports it; a second call does nothing.

    Args:
        target: The function.
        make: Called once, if the function is there. Returns what wraps it.
    """
    module = sys.modules.get(target.home)
    if module is not None:
        bind(module, target, make)
    elif not any(isinstance(each, _Finder) and each.target == target for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder(target, make))


def bind(home: ModuleType, target: Target, make: Callable[[], Wrap]) -> None:
    """Wrap a module's function, and put the wrapper wherever vLLM has bound the name."""
    function = vars(home).get(target.name)
    if function is None:
        _LOG.warning("this vLLM has no %s.%s: %s", target.home, target.name, target.without)
        return
    if hasattr(function, _MARK):
        return
    wrapper = make()(function)
    for name in _OF_CACHES:
        if hasattr(function, name):
            setattr(wrapper, name, getattr(function, name))
    setattr(wrapper, _MARK, True)
    for names in holders(target.name, function):
        names[target.name] = wrapper


def holders(name: str, function: Function) -> Iterator[dict[str, Any]]:
    """The names of every module of vLLM that has bound a function under a name."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get(name) is function and str(names.get("__name__")).startswith("vllm."):
            yield names


class _Finder:
    """Finds a function's module as the others would, and binds its name after the import."""

    def __init__(self, target: Target, make: Callable[[], Wrap]) -> None:
        self.target, self._make = target, make

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec, with a loader that binds; None for every other module."""
        if name != self.target.home:
            return None
        others = (each for each in list(sys.meta_path) if each is not self)
        found = (each.find_spec(name, path, target) for each in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            loader = _Loader(spec.loader, self.target, self._make)
            spec.loader = loader  # type: ignore[assignment]
        return spec


class _Loader:
    """A module's own loader, and what follows it. It is gone once the module is imported."""

    def __init__(
        self,
        loader: Any,  # noqa: ANN401 - of any kind
        target: Target,
        make: Callable[[], Wrap],
    ) -> None:
        self._loader, self._target, self._make = loader, target, make

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its loader does."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as its loader does, then bind."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        try:
            bind(module, self._target, self._make)
        except Exception as error:  # noqa: BLE001 - a server must not fail for this
            _LOG.warning("%s: %r", self._target.without, error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)
