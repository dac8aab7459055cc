"""Writes lines of ``tests/plan/models/made_by_vllm.jsonl``: what vLLM makes of real configs.

Run it where vLLM is installed beside autotune, with folders that hold a ``config.json`` each::

    python -m tests.vllm.made --tp 2 "published config" FOLDER...

Of each config those fields are kept that the table needs to come to the same layers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.errors import InputError
from autotune.plan.models import LoraLayer, Server, lora_layers, read_config
from autotune.plan.models.asking.asked_layers import answer_of

FLAGS = ("fully_sharded", "expert_parallel", "mixed_moe_lora_format", "moe_shared_loras")


def line_of(
    source: str, config: Mapping[str, Any], answer: Mapping[str, Any], **flags: Any
) -> dict[str, Any]:
    """A line of the file.

    Args:
        source: Where the config is from.
        config: The config.
        answer: What vLLM answered about it.
        flags: Fields of ``Server``, other than as they are by default.
    """
    counts = Counter(_described(each) for each in answer["layers"] if _is_launched(each))
    layers = sorted([count, *map(_as_json, one)] for one, count in counts.items())
    ways = flags.pop("tensor_parallel", 1)
    line = {"source": source, "tensor_parallel": ways}
    if flags:
        line["flags"] = flags
    server = Server(max_loras=8, rank=16, tensor_parallel=ways, **flags)
    return {**line, "config": _needed(config, server), "layers": layers}


def _is_launched(layer: Mapping[str, Any]) -> bool:
    return layer.get("computed", True) and not layer.get("only_if_named", False)


def _described(layer: Mapping[str, Any]) -> tuple[Any, ...]:
    name, writes = layer["path"].rpartition(".")[2], tuple(layer["writes"])
    if layer["split"] == "experts":
        sizes = (layer["reads"], layer["middle"], layer["local_experts"], layer["top_k"])
        return (name, *sizes, len(writes))
    return (name, layer["reads"], writes)


def _as_json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _needed(config: Mapping[str, Any], server: Server) -> dict[str, Any]:
    """The config without the fields that the table comes to the same layers without."""
    kept: dict[str, Any] = json.loads(json.dumps(config))
    wanted = _layers(kept, server)

    def drop(inside: dict[str, Any]) -> None:
        for key in list(inside):
            if inside is kept and key == "architectures":
                continue
            value = inside.pop(key)
            if _layers(kept, server) == wanted:
                continue
            inside[key] = value
            if isinstance(value, dict):
                drop(value)

    drop(kept)
    return kept


def _layers(config: Mapping[str, Any], server: Server) -> tuple[LoraLayer, ...] | str:
    try:
        return lora_layers(config, server)
    except InputError as error:
        return str(error)


def main() -> None:
    """Ask vLLM about each config, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--tp", type=int, default=1)
    for flag in FLAGS:
        parser.add_argument(f"--{flag.replace('_', '-')}", action="store_true")
    given = parser.parse_args()
    flags: dict[str, Any] = {flag: True for flag in FLAGS if getattr(given, flag)}
    server = Server(max_loras=8, rank=16, tensor_parallel=given.tp, **flags)
    for folder in given.folders:
        config, answer = read_config(str(folder)), answer_of(str(folder), server)
        line = line_of(given.source, config, answer, tensor_parallel=given.tp, **flags)
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
