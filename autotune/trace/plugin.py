"""The entry point that vLLM loads in each of its processes."""

from __future__ import annotations

import os

from autotune.trace import VARIABLE


def install() -> None:
    """Write down every look-up of this process, if ``AUTOTUNE_TRACE`` names a file.

    vLLM calls it in its front end, its engine and its workers, in some of them more than once. The
    first call counts. A fault is logged, and never reaches vLLM.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        from autotune.trace.hook import watch
        from autotune.trace.ledger import Ledger

        watch(lambda: Ledger(path).watched)
    except Exception as error:  # noqa: BLE001 - a server must not fail for this
        import logging

        logging.getLogger(__name__).warning("%s: nothing is traced: %r", path, error)
