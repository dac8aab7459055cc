"""The values that a study lacks, all of them in one message, and how flags give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: By a value's name the key in a study file, and the flag.
_PLACES = {
    "max_loras": ("max_loras = 8 to [lora]", "--max-loras"),
    "rank": ("rank = 16 to [lora]", "--rank"),
    "num_tokens": ("counts = [1, 16] to [tokens]", "--tokens"),
}


def lacking_text(who: str, names: Sequence[str]) -> str:
    """What a study file lacks, and the keys and the flags that give it.

    Args:
        who: What needs the values, such as ``the model``.
        names: The values' names, at least one.
    """
    keys = _listed([_PLACES[name][0] for name in names])
    return f"{who} has no {_listed(names)}: add {keys}, or give {flags_text(names)}"


def flags_text(names: Sequence[str]) -> str:
    """The flags that give values, such as ``--max-loras and --rank``."""
    return _listed([_PLACES[name][1] for name in names])


def with_flags(text: str, names: Iterable[str]) -> str:
    """A message with flags in place of the fields' names, such as ``--max-num-seqs``."""
    for name in names:
        text = re.sub(rf"\b{name}\b", f"--{name.replace('_', '-')}", text)
    return text


def _listed(words: Sequence[str]) -> str:
    """Such as ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
