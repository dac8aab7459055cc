"""From vLLM's answer to the layers with LoRA: as the table gives them, with sizes for formulas."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autotune.errors import InputError
from autotune.plan.documents import expanded, is_folder
from autotune.plan.models.adapter_tensors import AdaptedLayer, layers_among
from autotune.plan.models.adapters import Adapter, Place
from autotune.plan.models.asking.question import ask, has_vllm
from autotune.plan.models.config_json import Fields, has_mxfp4_experts
from autotune.plan.models.json_files import read_config
from autotune.plan.models.language_model import Model
from autotune.plan.models.lora_layers import LoraLayer, layers_at
from autotune.plan.models.modules import Architecture, Module, Split, Wrapper
from autotune.plan.models.server import MOE_BACKENDS, Server

#: The first number in a path: that of a decoder layer, or of a block of a tower.
_NUMBERED = re.compile(r"(?:^|\.)(\d+)\.")


class Asked(NamedTuple):
    """What vLLM answered.

    Attributes:
        layers: The layers with LoRA, as ``lora_layers`` gives them.
        release: vLLM's version.
    """

    layers: tuple[LoraLayer, ...]
    release: str


def asked_layers(
    source: str,
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> Asked:
    """The layers of a model that have LoRA, as the installed vLLM makes them.

    Args:
        source: A ``config.json``, a folder with one, or the model's id on the Hugging Face hub.
        server: The flags of the server that runs the model.
        targets: As for ``lora_layers``.

    Raises:
        InputError: vLLM is not installed, or refuses the model; or as ``lora_layers``.
    """
    answer = answer_of(source, server)
    return Asked(layers_of(answer, read_config(source), server, targets), answer["release"])


def asked_adapted(
    source: str,
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> tuple[AdaptedLayer, ...]:
    """The linear layers that an adapter may have, as the installed vLLM makes them.

    The arguments are those of ``asked_layers``, and so is what it raises.
    """
    fields, places = _places(answer_of(source, server), read_config(source), server)
    return layers_among(fields, places, server, targets)


def answer_of(source: str, server: Server) -> dict[str, Any]:
    """What the installed vLLM answers, as ``question`` describes it.

    Raises:
        InputError: vLLM is not installed, or refuses the model.
    """
    if not has_vllm():
        raise InputError(
            "vLLM cannot be asked, as it is not installed beside autotune; leave --ask-vllm out "
            "to have autotune's table say which layers the model has, or give what the server "
            "asks for, as --trace FILE"
        )
    config = read_config(source)
    with tempfile.TemporaryDirectory(prefix="autotune-config-") as empty:
        folder = expanded(source).absolute()
        if not is_folder(folder):
            folder = Path(empty)
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return ask(
            {
                "folder": str(folder),
                "tensor_parallel": server.tensor_parallel,
                "data_parallel": server.data_parallel,
                "flags": _flags(config, server),
            }
        )


def layers_of(
    answer: Mapping[str, Any],
    config: Mapping[str, Any],
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> tuple[LoraLayer, ...]:
    """The layers that an answer of vLLM's has.

    Args:
        answer: As ``question`` describes it.
        config: The model's config.
        server: The flags of the server that vLLM was asked about.
        targets: As for ``lora_layers``.

    Raises:
        InputError: As ``lora_layers``.
    """
    fields, places = _places(answer, config, server)
    return layers_at(fields, places, server, targets)


def _places(
    answer: Mapping[str, Any], config: Mapping[str, Any], server: Server
) -> tuple[Fields, dict[Module, list[Place]]]:
    """The model of an answer, and every module of it with its places."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "the model"
    wrapper = Wrapper(texts={}) if answer["has_media"] else None
    model = Model(name, Architecture(modules=()), {}, wrapper=wrapper)
    fields = Fields(model, has_mxfp4_experts=has_mxfp4_experts(config))
    places: dict[Module, list[Place]] = {}
    spell = _Spelling(answer["renamed"], answer["renamed_inside"])
    for layer in sorted(answer["layers"], key=_is_vocabulary):  # last, as in the table
        module = _module(layer, server)
        places.setdefault(module, []).append(_place(layer, module, spell))
    return fields, places


#: What vLLM calls the kernels that serve experts in MXFP4 with LoRA.
_BACKENDS = {each: each for each in MOE_BACKENDS} | {"triton": "triton_unfused"}


def _flags(config: Mapping[str, Any], server: Server) -> dict[str, Any]:
    """The server's flags that decide sizes, by the names of vLLM's ``EngineArgs``."""
    given = {
        "enable_expert_parallel": server.expert_parallel,
        "fully_sharded_loras": server.fully_sharded,
        "enable_mixed_moe_lora_format": server.mixed_moe_lora_format,
        "enable_moe_shared_loras": server.moe_shared_loras,
        "moe_backend": has_mxfp4_experts(config) and _BACKENDS.get(server.moe_backend or ""),
    }
    flags = {name: value for name, value in given.items() if value}
    return {"max_loras": 1, "max_lora_rank": server.rank, **flags}


def _is_vocabulary(layer: Mapping[str, Any]) -> bool:
    return Split(layer["split"]) in {Split.EMBEDDING, Split.LOGITS}


# --------------------------------------------------------------------------- one layer


def _module(layer: Mapping[str, Any], server: Server) -> Module:
    """A layer as the table would have it, with numbers for formulas."""
    split = Split(layer["split"])
    known = {
        "name": _below(layer["path"]),
        "split": split,
        "parts": tuple(layer["parts"]),
        "only_if_named": layer.get("only_if_named", False),
    }
    if split is Split.EXPERTS:
        return Module(**known, **_of_experts(layer, server))
    reads, writes = layer["reads"], layer["writes"]
    if split is Split.ROW:
        reads, writes = reads * server.tensor_parallel, _times(server.shards, writes)
    if split is Split.COLUMN:
        writes = _times(server.tensor_parallel, writes)
    return Module(
        **known,
        reads=str(reads) if reads else "",
        writes=tuple(map(str, writes)),
        computed=layer["computed"],
        is_linear=layer["is_linear"],
    )


def _of_experts(layer: Mapping[str, Any], server: Server) -> dict[str, Any]:
    deals_out = server.expert_parallel and server.expert_gpus > 1
    ways = 1 if deals_out else server.expert_gpus
    local = -(-layer["experts"] // (server.expert_gpus // ways))
    if layer["local_experts"] != local:
        raise InputError(
            f"vLLM has {layer['local_experts']} of {layer['experts']} experts of {layer['path']} "
            f"on the first GPU, where {local} are known; give what the server asks for, as "
            "--trace FILE"
        )
    is_fused = layer["writes"] == [2 * layer["middle"]]
    return {
        "reads": str(layer["reads"]),
        "writes": tuple(map(str, _times(ways, layer["writes"]))),
        "parameters": ("gate_up_proj", "down_proj"),
        "number": str(layer["experts"]),
        "top_k": str(layer["top_k"]),
        "is_gated": is_fused or len(layer["writes"]) > 1,
        "is_linear": not is_fused,
    }


def _times(ways: int, sizes: Iterable[int]) -> list[int]:
    """The sizes on all GPUs together."""
    return [ways * size for size in sizes]


def _below(path: str) -> str:
    """A path below its decoder layer; outside of those the module's own name."""
    numbered = _NUMBERED.search(path)
    return path[numbered.end() :] if numbered else path.rpartition(".")[2]


class _Spelling(NamedTuple):
    """How checkpoints spell vLLM's paths.

    Attributes:
        starts: Pairs of what checkpoints have at the start of a path and what vLLM has there.
        inside: The same within a path.
    """

    starts: Iterable[Sequence[str]]
    inside: Iterable[Sequence[str]]

    def all_of(self, path: str) -> tuple[str, ...]:
        """A path as vLLM has it, and as checkpoints may."""
        other = path
        for old, new in self.inside:
            other = other.replace(new, old) if new else other
        found = [path, other]
        for old, new in (*self.starts, *_OF_LANGUAGE_MODELS):
            found += [
                f"{old}{each.removeprefix(new)}" for each in (path, other) if each.startswith(new)
            ]
        return tuple(dict.fromkeys(found))


#: How checkpoints of models of several media spell what vLLM has, whatever the class says.
_OF_LANGUAGE_MODELS = [
    ("model.language_model.", "language_model.model."),
    ("model.", "language_model.model."),
]


def _place(layer: Mapping[str, Any], module: Module, spelling: _Spelling) -> Place:
    path = layer["path"]
    numbered = _NUMBERED.search(path)
    parent = path.rpartition(".")[0]
    below = [f"{parent}.{part}".removeprefix(".") for part in module.parts]
    parameters = (f"{path}.{each}" for each in module.parameters)
    return Place(
        path=path,
        parts=tuple(spelling.all_of(each) for each in below or [path]),
        split=module.split,
        parameters=tuple(name for each in parameters for name in spelling.all_of(each)),
        is_linear=module.is_linear,
        index=int(numbered.group(1)) if numbered else None,
    )
