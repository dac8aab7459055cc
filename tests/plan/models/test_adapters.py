"""Reading an adapter's ``adapter_config.json``."""

from __future__ import annotations

import json

import pytest

from autotune.errors import InputError
from autotune.plan.models import Adapter, read_adapter


def test_an_adapter_gives_its_modules_and_the_rank_of_a_server_for_it(tmp_path):
    table = {"peft_type": "LORA", "r": 12, "lora_alpha": 24, "target_modules": ["q_proj", "v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(table))

    found = read_adapter(str(tmp_path))

    assert (found.rank, found.server_rank) == (12, 16)
    assert found.target_modules == ("q_proj", "v_proj")


def test_the_largest_rank_of_an_adapter_counts(tmp_path):
    table = {
        "r": 8,
        "lora_alpha": 8,
        "rank_pattern": {"o_proj": 48},
        "target_modules": "all-linear",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(table))

    found = read_adapter(str(tmp_path))

    assert (found.rank, found.server_rank, found.target_modules) == (48, 64, "all-linear")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"r": 8, "peft_type": "IA3"}, "not a LoRA adapter: peft_type is 'IA3'"),
        ({"target_modules": ["q_proj"]}, "r must be a whole number of at least 1: got nothing"),
        ({"r": 0}, "r must be a whole number of at least 1: got 0"),
        (
            {"r": 8, "rank_pattern": {"o": "x"}},
            r"rank_pattern\['o'\] must be a whole number .*: got 'x'",
        ),
        ({"r": 8, "rank_pattern": {"o": 0}}, r"rank_pattern\['o'\] must be .* at least 1: got 0"),
        ({"r": 8, "rank_pattern": {"o": None}}, r"rank_pattern\['o'\] must be .*: got nothing"),
        ({"r": 8, "rank_pattern": {"(o": 8}}, r"rank_pattern\['\(o'\] is no valid pattern: "),
        ({"r": 8, "rank_pattern": {"o" * 1001: 8}}, "rank_pattern must have keys of at most 1000"),
        (
            {"r": 8, "lora_alpha": 8, "target_modules": ["o"], "alpha_pattern": {"[": 8}},
            r"alpha_pattern\['\['\] is no valid pattern: ",
        ),
        (
            {"r": 8, "lora_alpha": 8, "target_modules": ["o"], "alpha_pattern": {"o": "8"}},
            r"alpha_pattern\['o'\] must be a number: got '8'",
        ),
        (
            {"r": 8, "lora_alpha": 8, "target_modules": 1},
            "target_modules must be a list of names: got 1",
        ),
    ],
)
def test_a_file_that_is_not_a_lora_adapters_is_refused(tmp_path, table, message):
    (tmp_path / "adapter_config.json").write_text(json.dumps(table))

    with pytest.raises(InputError, match=message):
        read_adapter(str(tmp_path))


def test_an_adapter_of_a_rank_above_vllms_largest_is_refused():
    with pytest.raises(
        InputError, match="rank is above vLLM's largest: got r 1024; 512 is the most"
    ):
        _ = Adapter(source="adapter", rank=1024, target_modules=("q_proj",)).server_rank
