"""vLLM's look-up in a tuned file, written anew.

It does what ``get_lora_op_configs`` in ``vllm/lora/ops/triton_ops/utils.py`` does, which is the
same from vLLM 0.11.1 to 0.33.0; ``tests/vllm`` compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from autotune.errors import EntryMissing, printable
from autotune.launch.op import LookupKey, key_of, key_text

#: At this level alone vLLM takes no other key than the one that it asks for.
_EXACT_LEVEL = "num_slices"


#: Keys that a message shows, and characters of each.
_MOST_KEYS, _MOST_CHARACTERS = 8, 40


def keys_in(table: Iterable[str]) -> str:
    """The first keys of a level or an entry, as messages show them."""
    return ", ".join(printable(key[:_MOST_CHARACTERS]) for key in islice(table, _MOST_KEYS))


class Found(NamedTuple):
    """What a look-up ends at.

    Attributes:
        leaf: The entry: any JSON value but null, since vLLM looks into it at the launch only.
        path: The keys that vLLM really takes to it.
    """

    leaf: Any
    path: LookupKey


def look_up(table: Mapping[str, Any], key: LookupKey) -> Found:
    """Go down a tuned file as vLLM does.

    At every level vLLM takes the exact key, else the nearest by absolute difference, and the first
    in the file on a tie; ``num_slices`` must be there. Keys are compared as ``int()`` reads them,
    ``"016"`` as 16, but only the plain spelling is the exact key.

    Args:
        table: The file's content, whatever it holds.
        key: The key that vLLM asks for.

    Raises:
        EntryMissing: vLLM would stop with an error, or take its default.
    """
    if not table:
        raise EntryMissing(
            f"vLLM would stop looking for {key_text(key)} before the first key, and "
            "take its default: the file holds nothing; tune into it",
            vllm_error=None,
        )
    levels: list[int] = []
    below: Any = table
    for level, wanted in key._asdict().items():
        taken = _exact(below, wanted) if level == _EXACT_LEVEL else _nearest(below, wanted)
        levels.append(int(taken))
        below = below[taken]
    path = key_of(levels)
    if below is None:
        reason = f"the entry under {key_text(path)} is null; tune the shape again"
        raise _stop("AssertionError", reason)
    return Found(below, path)


def _exact(table: object, num_slices: int) -> str:
    """The key for a number of slices, whatever is below it."""
    if not isinstance(table, Mapping):
        raise _stop("TypeError", _no_table(table, num_slices))
    if str(num_slices) not in table:
        raise _stop(
            "KeyError",
            f"no entry for num_slices {num_slices}, only {keys_in(table) or 'an empty level'}; "
            "tune that layer too",
        )
    return str(num_slices)


def _nearest(table: object, wanted: int) -> str:
    """The exact key, else the nearest one."""
    if not isinstance(table, Mapping):
        raise _stop("AttributeError", _no_table(table, wanted))
    # vLLM passes over an exact key with nothing below it, and takes the nearest: another spelling
    # of the same number that comes earlier in the file, else this very key.
    if table.get(str(wanted)):
        return str(wanted)
    try:
        nearest: str = min(table, key=lambda key: abs(int(key) - wanted))
    except ValueError as error:  # there is no key at all, or one that is no integer
        raise EntryMissing(
            f"vLLM would stop looking for {wanted}: {error}; correct the keys, or delete the file",
            vllm_error="ValueError",
        ) from None
    return nearest


def _no_table(value: object, wanted: int) -> str:
    return f"a {type(value).__name__} where the key {wanted} should be; write the file anew"


def _stop(vllm_error: str, reason: str) -> EntryMissing:
    return EntryMissing(f"vLLM would stop: {reason}", vllm_error=vllm_error)
