"""autotune: finds the fastest launch configurations of vLLM's multi-LoRA Triton kernels.

From Python: ``tune`` a ``StudyPlan``, or ``load`` the database of a run or ``load_recording``; each
gives ``Results``, with DataFrames of all trials and of the selections. A name's module is imported
when the name is first used, so that ``import autotune`` alone is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.version import __version__

__all__ = [
    "AutotuneError",
    "Results",
    "StudyPlan",
    "__version__",
    "load",
    "load_recording",
    "shipped_recording",
    "tune",
]

if TYPE_CHECKING:
    from autotune.api import Results, load, load_recording, tune
    from autotune.errors import AutotuneError
    from autotune.measure.replay import shipped_recording
    from autotune.plan.study import StudyPlan
else:
    # Hidden from type checkers, to which it would make every name an attribute.
    _HOMES = {
        "AutotuneError": "errors",
        "Results": "api",
        "StudyPlan": "plan.study",
        "load": "api",
        "load_recording": "api",
        "shipped_recording": "measure.replay",
        "tune": "api",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
