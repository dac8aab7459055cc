"""Puts a wrapper around vLLM's look-up, wherever a release binds its name.

Every release defines ``get_lora_op_configs`` in one module, and other modules import the name from
there: some when they are imported, some at every call (vLLM 0.11.1 to 0.33.0). So the name is bound
anew as soon as that module has been imported, before others see it. vLLM loads plugins before its
LoRA modules, which must not be imported early: they import Triton and need the platform.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: The module that defines the look-up, and the look-up's name.
HOME = "vllm.lora.ops.triton_ops.utils"
NAME = "get_lora_op_configs"

#: Marks what is wrapped already.
_MARK = "__autotune_trace__"

#: What ``functools.lru_cache`` gives the look-up beside its call; vLLM's tests use it.
_OF_CACHES = ("cache_clear", "cache_info", "cache_parameters")

LookUp = Callable[..., Any]
#: Returns the wrapper of a look-up.
Wrap = Callable[[LookUp], LookUp]

_LOG = logging.getLogger(__name__)


def watch(make: Callable[[], Wrap]) -> None:
    """Wrap the look-up now, or as soon as vLLM imports it; a second call does nothing.

    Args:
        make: Called once, if the look-up is there. Returns what wraps it.
    """
    module = sys.modules.get(HOME)
    if module is not None:
        bind(module, make)
    elif not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder(make))


def bind(home: ModuleType, make: Callable[[], Wrap]) -> None:
    """Wrap a module's look-up, and put the wrapper wherever vLLM has bound the name."""
    look_up = vars(home).get(NAME)
    if look_up is None:
        _LOG.warning("this vLLM has no %s.%s: nothing is traced", HOME, NAME)
        return
    if hasattr(look_up, _MARK):
        return
    wrapper = make()(look_up)
    for name in _OF_CACHES:
        if hasattr(look_up, name):
            setattr(wrapper, name, getattr(look_up, name))
    setattr(wrapper, _MARK, True)
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get(NAME) is look_up and str(names.get("__name__")).startswith("vllm."):
            names[NAME] = wrapper


class _Finder:
    """Finds the look-up's module as the others would, and binds its name after the import."""

    def __init__(self, make: Callable[[], Wrap]) -> None:
        self._make = make

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec, with a loader that binds; None for every other module."""
        if name != HOME:
            return None
        others = (each for each in list(sys.meta_path) if each is not self)
        found = (each.find_spec(name, path, target) for each in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._make)  # type: ignore[assignment]
        return spec


class _Loader:
    """A module's own loader, and what follows it. It is gone once the module is imported."""

    def __init__(self, loader: Any, make: Callable[[], Wrap]) -> None:  # noqa: ANN401 - of any kind
        self._loader, self._make = loader, make

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
            bind(module, self._make)
        except Exception as error:  # noqa: BLE001 - a server must not fail for this
            _LOG.warning("nothing is traced: %r", error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)
