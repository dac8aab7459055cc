"""The layers of the table beside those that vLLM makes.

``made_by_vllm.jsonl`` was written by vLLM 0.33.0: for each config it built the model on the meta
device with its own classes, and its LoRA manager put LoRA on. A line has the fields of the config
that matter, where the config comes from, and for each kind of layer how many of it there are on the
first of so many GPUs, its name, what its A reads and what its Bs write; for experts what they read,
their width, how many there are and a token goes to, and the slices of w13. ``flags`` are those of
the server, beside the number of GPUs. ``tests/vllm/made.py`` writes such lines.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.plan.models import LoraLayer, Server, lora_layers
from autotune.plan.models.modules import Wrapper
from autotune.plan.models.table import ARCHITECTURES

MADE = [
    json.loads(line)
    for line in (Path(__file__).parent / "made_by_vllm.jsonl").read_text().splitlines()
]


def _named(made: dict[str, Any]) -> str:
    flags = ", ".join(made.get("flags", ()))
    return f"{made['config']['architectures'][0]} on {made['tensor_parallel']} {flags}".strip()


def as_vllm_has_it(layer: LoraLayer) -> tuple[Any, ...]:
    """A layer by its name and its sizes, as in the file."""
    shapes = {shape.op: shape for shape in layer.shapes}
    name = layer.name.rpartition(".")[2]
    if LoraOp.W13_SHRINK in shapes:
        w13, w2 = shapes[LoraOp.W13_SHRINK], shapes[LoraOp.W2_SHRINK]
        sizes = (w13.hidden_size, w2.intermediate_size, w13.num_experts, w13.top_k)
        return (name, *sizes, w13.num_slices)
    read = shapes[LoraOp.SHRINK].hidden_size if LoraOp.SHRINK in shapes else 0
    return (name, read, tuple(shapes[LoraOp.EXPAND].slice_sizes))


@pytest.mark.parametrize("made", MADE, ids=_named)
def test_layers_are_those_that_vllm_makes(made):
    found: Counter[tuple[Any, ...]] = Counter()
    flags = made.get("flags", {})
    server = Server(max_loras=8, rank=16, tensor_parallel=made["tensor_parallel"], **flags)
    for layer in lora_layers(made["config"], server):
        found[as_vllm_has_it(layer)] += layer.runs

    expected = {
        (name, *(tuple(size) if isinstance(size, list) else size for size in sizes)): count
        for count, name, *sizes in made["layers"]
    }
    assert found == expected


#: The names of the number of experts, by releases of ``transformers``.
NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

OF_EXPERTS = [
    made
    for made in MADE
    if "flags" not in made and any(sizes[0] == "experts" for _, *sizes in made["layers"])
]


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that has its language model, for changing it."""
    inside: dict[str, Any] = config.get("thinker_config", config)
    found: dict[str, Any] = inside.get("text_config", inside)
    return found


@pytest.mark.parametrize("made", OF_EXPERTS, ids=_named)
def test_a_mixture_is_found_by_every_name_of_its_number_and_never_taken_for_dense(made):
    server = Server(max_loras=8, rank=16)
    layers = lora_layers(made["config"], server)
    (name,) = set(_language_model(made["config"])) & set(NUMBERS)
    for other in NUMBERS[:3] if name in NUMBERS[:3] else ():
        config = json.loads(json.dumps(made["config"]))
        _language_model(config)[other] = _language_model(config).pop(name)
        assert lora_layers(config, server) == layers

    config = json.loads(json.dumps(made["config"]))
    del _language_model(config)[name]
    with pytest.raises(InputError, match=r"whole number"):
        lora_layers(config, server)


def _may_have_experts(made: dict[str, Any]) -> bool:
    entry = ARCHITECTURES[made["config"]["architectures"][0]]
    texts = entry.texts.values() if isinstance(entry, Wrapper) else [entry]
    return any(module.number for text in texts for module in text.modules)


@pytest.mark.parametrize("made", [made for made in MADE if not _may_have_experts(made)], ids=_named)
def test_experts_of_an_architecture_without_any_are_refused(made):
    config = json.loads(json.dumps(made["config"]))
    _language_model(config)["num_experts"] = 8

    with pytest.raises(InputError, match="is not known with a mixture of experts"):
        lora_layers(config, Server(max_loras=8, rank=16))
