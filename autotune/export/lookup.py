"""vLLM's look-up in a tuned file, stated anew.

What it does is read from ``get_lora_op_configs`` in ``vllm/lora/ops/triton_ops/utils.py``, the same
from vLLM 0.11.1 to 0.33.0; ``tests/vllm`` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from autotune.errors import EntryMissing

#: The one level at which vLLM takes no other key than the one it asks for.
_NUM_SLICES_LEVEL = 1


class Found(NamedTuple):
    """What a look-up ends at: the entry, and the keys that were really taken to it.

    vLLM looks into the entry at the launch only, so any JSON value but null is found.
    """

    leaf: Any
    path: tuple[int, ...]


def look_up(table: Mapping[str, Any], key: tuple[int, ...]) -> Found:
    """Go down a tuned file as vLLM does.

    At every level the exact key, else the nearest by absolute difference, the first in the file on
    a tie; ``num_slices`` must be there. Keys are compared as ``int()`` reads them, ``"016"`` as 16,
    but only the plain spelling is the exact key.

    Args:
        table: The file's content, whatever it holds.
        key: What vLLM asks for, outermost first, as ``KernelShape.lookup_key`` gives it.

    Raises:
        EntryMissing: vLLM would stop with an error, or take its default.
    """
    if not table:
        raise EntryMissing(
            f"vLLM would stop looking for {'/'.join(map(str, key))} before the first key, and "
            "take its default: the file holds nothing; tune into it",
            vllm_error=None,
        )
    path: list[int] = []
    below: Any = table
    for level, wanted in enumerate(key):
        taken = _exact(below, wanted) if level == _NUM_SLICES_LEVEL else _nearest(below, wanted)
        path.append(int(taken))
        below = below[taken]
    if below is None:
        place = "/".join(map(str, path))
        raise _stop("AssertionError", f"the entry under {place} is null; tune the shape again")
    return Found(below, tuple(path))


def _exact(table: object, num_slices: int) -> str:
    """The key for a number of slices, whatever is below it."""
    if not isinstance(table, Mapping):
        raise _stop("TypeError", _no_table(table, num_slices))
    if str(num_slices) not in table:
        raise _stop(
            "KeyError",
            f"no entry for num_slices {num_slices}, only {', '.join(table) or 'an empty level'}; "
            "tune that layer too",
        )
    return str(num_slices)


def _nearest(table: object, wanted: int) -> str:
    """The exact key, else the nearest one."""
    if not isinstance(table, Mapping):
        raise _stop("AttributeError", _no_table(table, wanted))
    # vLLM passes over an exact key with nothing below it. Of the keys that are as near as can be,
    # that may leave another spelling, and else the very same one.
    if table.get(str(wanted)):
        return str(wanted)
    try:
        nearest: str = min(table, key=lambda key: abs(int(key) - wanted))
    except ValueError as error:  # no key at all, or one that is no integer
        raise EntryMissing(
            f"vLLM would stop looking for {wanted}: {error}; correct the keys, or delete the file",
            vllm_error="ValueError",
        ) from None
    return nearest


def _no_table(value: object, wanted: int) -> str:
    return f"a {type(value).__name__} where the key {wanted} should be; write the file anew"


def _stop(vllm_error: str, reason: str) -> EntryMissing:
    return EntryMissing(f"vLLM would stop: {reason}", vllm_error=vllm_error)
