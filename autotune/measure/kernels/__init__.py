"""Kernel providers: whose kernels are compiled, launched and checked."""

from __future__ import annotations

import importlib

from autotune.errors import InputError
from autotune.measure.kernels._base import CompiledKernel, KernelProvider

__all__ = ["PROVIDERS", "CompiledKernel", "KernelProvider", "provider"]

#: Names that ``provider`` knows.
PROVIDERS = ("builtin", "vllm")


def provider(name: str) -> KernelProvider:
    """Make the kernel provider of that name. Torch and Triton are imported only here.

    Args:
        name: One of ``PROVIDERS``, or ``module:Class`` of another provider.

    Raises:
        InputError: There is no such provider.
        KernelsUnusable: The provider is vLLM's, and vLLM's kernels cannot be used here.
    """
    if name == "builtin":
        from autotune.measure.kernels.builtin import BuiltinProvider

        return BuiltinProvider()
    if name == "vllm":
        from autotune.measure.kernels.vllm import VllmProvider

        return VllmProvider()
    module, _, attribute = name.partition(":")
    if attribute:
        made = getattr(importlib.import_module(module), attribute)()
        if isinstance(made, KernelProvider):
            return made
    raise InputError(f"unknown kernel provider: got {name!r}; use {' or '.join(PROVIDERS)}")
