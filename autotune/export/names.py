"""The names of a folder's files: those that vLLM looks for, and those that only look like it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autotune.launch.op import LoraOp, gpu_file_prefix

PROVENANCE_SUFFIX = "_provenance.json"

#: What follows it where the file is compressed.
PACKED = ".gz"

#: The longest suffix first, since the name of a MoE file ends like that of a dense one.
_OPS = sorted(
    ((suffix, op) for op in LoraOp for suffix in op.file_suffixes),
    key=lambda pair: -len(pair[0]),
)

#: What vLLM called its ops before 0.11.1, and calls them now.
_OLD_OPS = {
    "FUSED_MOE_LORA_GATE_UP": "FUSED_MOE_LORA_W13",
    "FUSED_MOE_LORA_DOWN": "FUSED_MOE_LORA_W2",
    "V1": "",
}
_OLD = re.compile(
    rf"(?P<prefix>.+)_(?P<old>{'|'.join(_OLD_OPS)})_(?P<op>SHRINK|EXPAND)"
    r"(?:_(?P<add_inputs>TRUE|FALSE))?\.json",
    re.IGNORECASE,
)

#: The name of an op that vLLM never had, before the part that every op's name ends with.
_NO_OP = re.compile(r"_FUSED_MOE_LORA(?:_|$)")

#: Names in which somebody may see a tuned file of some op.
_LOOKS_TUNED = re.compile(r"(?:.*[^A-Z])?(?:SHRINK|EXPAND)(?:[^A-Z].*)?\.JSON")

#: What vLLM reads for the base layers of a mixture of experts, from the same folder.
_BASE_MOE = re.compile(r"E=\d+,N=\d+,.*device_name=.+\.json", re.ASCII)

#: Names that a person may have meant for a tuned file.
_MEANT = re.compile(
    r"(?P<prefix>.+?)[_ -](?P<op>(?:FUSED.MOE.LORA.W(?:13|2).)?(?:SHRINK|EXPAND))"
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
            if _OLD.fullmatch(text) or _NO_OP.search(prefix):
                return None
            return Name(text, prefix, op) if gpu_file_prefix(prefix) == prefix else None
    return None


def meant_name(text: str) -> str | None:
    """What a name that vLLM never looks for should have been; None for any other file."""
    match = _MEANT.fullmatch(text)
    if match is None or parse_name(text) or _NO_OP.search(match["prefix"]):
        return None
    op = gpu_file_prefix(match["op"]).upper()
    added = f"_{(match['add_inputs'] or 'TRUE').upper()}" if op == "EXPAND" else ""
    return f"{gpu_file_prefix(match['prefix'])}_{op}{added}.json"


def unread_reason(text: str) -> str | None:
    """Why vLLM never reads a file that looks like a tuned one; None for any other file."""
    if parse_name(text) or text.endswith(PROVENANCE_SUFFIX):
        return None
    if old := _OLD.fullmatch(text):
        added = f"_{(old['add_inputs'] or 'TRUE').upper()}" if old["op"].upper() == "EXPAND" else ""
        parts = (old["prefix"], _OLD_OPS[old["old"].upper()], old["op"].upper())
        name = "_".join(filter(None, parts)) + ("" if "MOE" in parts[1] else added)
        return (
            f"this is an op's name of old releases of vLLM, which would never read it now; the "
            f"file's name is {name}.json today, and its keys may differ: tune again, or check it "
            "under that name"
        )
    if meant := meant_name(text):
        return (
            "no GPU's name gives this file name: vLLM would never read it; "
            f"rename it, to {meant} perhaps"
        )
    if _LOOKS_TUNED.fullmatch(text.upper()):
        return (
            "vLLM would never read it, since no op's file has such a name: they begin with the "
            "GPU's name and end with the op's, such as _SHRINK.json; rename it, or move it away"
        )
    return None


def is_base_moe(text: str) -> bool:
    """Whether vLLM reads a file of this name for the base layers of a mixture of experts."""
    return _BASE_MOE.fullmatch(text) is not None


def names_in(folder: Path) -> list[str]:
    """The names of a folder's JSON files, sorted, whatever lies there; no links to nothing."""
    return sorted(path.name for path in _json_in(folder) if path.exists())


def links_to_nothing(folder: Path) -> list[str]:
    """The names of a folder's JSON files that are links and lead nowhere, sorted."""
    return sorted(path.name for path in _json_in(folder) if not path.exists())


def _json_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*") if path.suffix.lower() == ".json")


def provenance_prefixes(folder: Path) -> list[str]:
    """The GPU's part of the name of every provenance file, compressed or not."""
    names = [name for name in names_in(folder) if name.endswith(PROVENANCE_SUFFIX)]
    names += [path.stem for path in folder.glob(f"*{PROVENANCE_SUFFIX}{PACKED}")]
    return sorted({name.removesuffix(PROVENANCE_SUFFIX) for name in names})


def prefixes_in(folder: Path) -> list[str]:
    """The GPU's part of every tuned file's name, each once."""
    parsed = filter(None, map(parse_name, names_in(folder)))
    return list(dict.fromkeys(name.prefix for name in parsed))
