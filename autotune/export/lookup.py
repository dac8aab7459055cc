"""vLLM's look-up in a tuned file, stated anew.

What it does is read from ``get_lora_op_configs`` in ``vllm/lora/ops/triton_ops/utils.py``, the same
from vLLM 0.11.1 to 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from autotune.errors import ExportError

#: The one level at which vLLM takes no other key than the one it asks for.
_NUM_SLICES_LEVEL = 1


class Found(NamedTuple):
    """What a look-up ends at: the entry, and the keys that were really taken to it."""

    leaf: Mapping[str, Any]
    path: tuple[int, ...]


def look_up(table: Mapping[str, Any], key: tuple[int, ...]) -> Found:
    """Go down a tuned file as vLLM does.

    At every level the exact key, else the nearest by absolute difference, the first in the file on
    a tie; ``num_slices`` must be there.

    Args:
        table: The file's content.
        key: What vLLM asks for, outermost first, as ``KernelShape.lookup_key`` gives it.

    Raises:
        ExportError: vLLM would stop with an error.
    """
    path: list[int] = []
    for level, wanted in enumerate(key):
        taken = _taken(table, wanted, exact=level == _NUM_SLICES_LEVEL)
        path.append(int(taken))
        table = table[taken]
    return Found(table, tuple(path))


def _taken(table: Mapping[str, Any], wanted: int, *, exact: bool) -> str:
    if str(wanted) in table:
        return str(wanted)
    if exact:
        raise ExportError(
            f"vLLM would stop: no entry for num_slices {wanted}, only {', '.join(table)}; "
            "tune that layer too"
        )
    try:
        return min(table, key=lambda key: abs(int(key) - wanted))
    except ValueError as error:  # no key at all, or one that is no integer
        raise ExportError(f"vLLM would stop looking for {wanted}: {error}") from None
