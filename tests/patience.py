"""How long a test waits for what must come."""

from __future__ import annotations

from collections.abc import Callable

import pytest

#: A safety net only, in seconds: so long that no test fails because the machine is busy.
PATIENCE_S = 900.0


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Give the processes of a CUDA runner as long as they need, however busy the machine is.

    Compilers run with a low priority: beside 16 busy processes one takes minutes to import Triton.
    """
    from autotune.measure.cuda import compiler, process, referee, runner, searcher, worker

    patch.setattr(worker, "START_TIMEOUT_S", PATIENCE_S)
    patch.setattr(compiler, "START_TIMEOUT_S", PATIENCE_S)
    for module in (process, referee, searcher):
        patch.setattr(module, "REQUEST_TIMEOUT_S", PATIENCE_S)
    of_pool: Callable[..., None] = compiler.CompilePool.__init__
    of_processes: Callable[..., None] = runner.Processes.__init__
    for made, names in (
        (of_pool, ["timeout_s"]),
        (of_processes, ["config_timeout_s", "compile_timeout_s"]),
    ):
        for name in names:
            defaults: dict[str, object] = made.__kwdefaults__ or {}
            patch.setitem(defaults, name, PATIENCE_S)
