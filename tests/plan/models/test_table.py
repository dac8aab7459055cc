"""The table of architectures as a whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.plan.models import Server, lora_layers
from autotune.plan.models.modules import Wrapper
from autotune.plan.models.table import ARCHITECTURES

DOCS = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_documentation_names_every_architecture_that_is_known():
    section = DOCS.read_text().partition("### Which models are known")[2].partition("What vLLM")[0]
    languages, _, media = section.partition("And these models of several media")

    named = [re.findall(r"`([A-Z]\w+)`", each) for each in (languages, media)]

    wrappers = [name for name, entry in ARCHITECTURES.items() if isinstance(entry, Wrapper)]
    assert named == [[name for name in ARCHITECTURES if name not in wrappers], wrappers]


@pytest.mark.parametrize(
    ("name", "near"),
    [("Qwen3MoForCausalLM", "Qwen3MoeForCausalLM"), ("Rwkv", "Qwen3ForCausalLM")],
)
def test_an_unknown_architecture_names_what_is_near_and_the_other_ways(name, near):
    with pytest.raises(
        InputError, match=rf"known are .*{near}.*--ask-vllm; .* --trace FILE, .* by hand"
    ):
        lora_layers({"architectures": [name]}, Server(max_loras=8, rank=16))
