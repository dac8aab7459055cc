"""Kernel providers: whose kernels are compiled, launched and compared."""

from __future__ import annotations

import importlib

from autotune.errors import InputError
from autotune.measure.kernels._base import CompiledKernel, KernelProvider

__all__ = ["PROVIDERS", "CompiledKernel", "KernelProvider", "provider"]

#: Names that ``provider`` knows.
PROVIDERS = ("builtin", "vllm")


def provider(name: str) -> KernelProvider:
    """The kernel provider of that name; torch and triton are imported only now.

    Args:
        name: One of ``PROVIDERS``, or ``module:Class`` of a provider of one's own.

    Raises:
        InputError: There is no such provider.
        KernelsUnusable: It is vLLM's, and cannot be had here.
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
