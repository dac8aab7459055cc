"""The names of a folder's files: those that vLLM looks for, and those that only look like it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from autotune.launch.op import LoraOp, gpu_file_prefix

PROVENANCE_SUFFIX = "_provenance.json"

#: The longest suffix first, since the name of a MoE file ends like that of a dense one.
_OPS = sorted(
    ((suffix, op) for op in LoraOp for suffix in op.file_suffixes),
    key=lambda pair: -len(pair[0]),
)

#: Names that a person may have meant for a tuned file.
_MEANT = re.compile(
    r"(?P<prefix>.+)[_ -](?P<op>(?:FUSED.MOE.LORA.W(?:13|2).)?(?:SHRINK|EXPAND))"
    r"(?:[_ -](?P<add_inputs>TRUE|FALSE))?\.json",
    re.IGNORECASE,
)


class Name(NamedTuple):
    """A name that vLLM looks for on some GPU."""

    text: str
    prefix: str
    op: LoraOp


def parse_name(text: str) -> Name | None:
    """The parts of a name that vLLM looks for on some GPU; None for every other name."""
    for suffix, op in _OPS:
        prefix = text.removesuffix(suffix)
        if prefix not in ("", text):
            return Name(text, prefix, op) if gpu_file_prefix(prefix) == prefix else None
    return None


def meant_name(text: str) -> str | None:
    """What a name that vLLM never looks for should have been; None for any other file."""
    match = _MEANT.fullmatch(text)
    if match is None or parse_name(text):
        return None
    op = gpu_file_prefix(match["op"]).upper()
    added = f"_{(match['add_inputs'] or 'TRUE').upper()}" if op == "EXPAND" else ""
    return f"{gpu_file_prefix(match['prefix'])}_{op}{added}.json"


def names_in(folder: Path) -> list[str]:
    """The names of a folder's JSON files, sorted."""
    return sorted(path.name for path in folder.glob("*.json") if path.is_file())


def provenance_prefixes(folder: Path) -> list[str]:
    """The GPU's part of every provenance file's name."""
    names = names_in(folder)
    return [
        name.removesuffix(PROVENANCE_SUFFIX) for name in names if name.endswith(PROVENANCE_SUFFIX)
    ]


def prefixes_in(folder: Path) -> list[str]:
    """The GPU's part of every tuned file's name, each once."""
    parsed = filter(None, map(parse_name, names_in(folder)))
    return list(dict.fromkeys(name.prefix for name in parsed))
