"""Triton's interpreter, quicker."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest


class _Inspect:
    """The module ``inspect``, with the builtins of Triton's language in place of all members."""

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    def getmembers(self, module: Any) -> list[tuple[str, Any]]:
        return [(name, getattr(module, name)) for name in self._names(module)]

    @staticmethod
    @cache
    def _names(module: Any) -> list[str]:
        """As they are before the first kernel: while one runs, others stand in for them."""
        from triton.language.core import is_builtin

        return [name for name, member in inspect.getmembers(module) if is_builtin(member)]


@pytest.fixture(scope="package", autouse=True)
def _builtins_listed_once() -> Iterator[None]:
    """The interpreter lists them for each function that a kernel calls: a quarter of its time."""
    # Not before pytest's start is over: Triton asks whether it interprets when it is imported.
    from triton.runtime import interpreter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "inspect", _Inspect(), raising=False)
        yield
