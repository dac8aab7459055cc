"""The entry point that vLLM loads in each of its processes."""

from __future__ import annotations

import os

from autotune.trace import VARIABLE, WARM

#: Values of a variable that mean yes, and that mean no.
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})


def install() -> None:
    """Do in this process what the environment variables ask for; without them, nothing.

    ``AUTOTUNE_TRACE`` names a file: every look-up is written down. ``AUTOTUNE_WARM`` is 1: a worker
    launches at its start what it would compile while it serves.

    vLLM calls it in its front end, its engine and its workers, in some of them more than once. The
    first call counts. A fault is logged, and never reaches vLLM.
    """
    path = os.environ.get(VARIABLE)
    if path:
        try:
            _trace(path)
        except Exception as error:  # noqa: BLE001 - a server must not fail for this
            _warn("%s: nothing is traced: %r", path, error)
    value = os.environ.get(WARM, "")
    if value.strip().lower() not in _YES | _NO:
        _warn("%s must be 1 or 0: got %r; nothing more is launched at the start", WARM, value)
    if value.strip().lower() in _YES:
        try:
            _warm()
        except Exception as error:  # noqa: BLE001 - a server must not fail for this
            _warn("%s: nothing more is launched at the start: %r", WARM, error)


def _trace(path: str) -> None:
    from autotune.trace.hook import LOOK_UP, watch
    from autotune.trace.ledger import Ledger

    watch(LOOK_UP, lambda: Ledger(path).watched)


def _warm() -> None:
    from autotune.trace.hook import WARM_UP, watch
    from autotune.trace.startup import with_more_launches

    watch(WARM_UP, lambda: with_more_launches)


def _warn(text: str, *arguments: object) -> None:
    import logging

    logging.getLogger(__name__).warning(text, *arguments)
