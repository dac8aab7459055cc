"""Kernel providers: whose kernels are compiled, launched and compared."""

from __future__ import annotations

from autotune.errors import InputError
from autotune.kernels._base import CompiledKernel, KernelProvider

__all__ = ["PROVIDERS", "CompiledKernel", "KernelProvider", "provider"]

#: Names that ``provider`` knows.
PROVIDERS = ("builtin",)


def provider(name: str) -> KernelProvider:
    """The kernel provider of that name; torch and triton are imported only now.

    Raises:
        InputError: There is no such provider.
    """
    if name == "builtin":
        from autotune.kernels.builtin import BuiltinProvider

        return BuiltinProvider()
    raise InputError(f"unknown kernel provider: got {name!r}; use {' or '.join(PROVIDERS)}")
