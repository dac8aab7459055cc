"""Configs of models and adapters that a fault or an enemy wrote: one line each, or taken."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.plan.documents import LARGEST_BYTES
from autotune.plan.models import Server, lora_layers, read_adapter, read_config
from tests.mutated import nested, places

MODELS = Path(__file__).parents[3] / "studies" / "models"

_CONFIGS = {path.stem: json.loads(path.read_text()) for path in sorted(MODELS.glob("*.json"))}
_CONFIGS |= {
    config["architectures"][0]: config
    for line in (Path(__file__).parent / "made_by_vllm.jsonl").read_text().splitlines()
    if (config := json.loads(line)["config"])
}

_ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "rank_pattern": {"o_proj": 8},
    "target_modules": ["q_proj", "o_proj"],
    "target_parameters": [],
    "exclude_modules": ["k_proj"],
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "modules_to_save": None,
    "bias": "none",
    "use_dora": False,
    "init_lora_weights": True,
    "layer_replication": None,
}


_HOSTILE = st.one_of(
    st.sampled_from(
        [
            *(None, 0, -1, 1, 2, 2**24, 2**31, 2**64, 10**4000, math.nan, math.inf, 1.5, 16.0),
            *(True, False, "", "1", "\x00", "\x1b[2J", "a\nb", "\u202e", "x" * 5000),
            *([], [[]], {}, {"": 1}, [None], ["\x1b"], [1] * 100, nested(200)),
        ]
    ),
    st.integers(),
    st.text(max_size=8),
)


def _changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at one place."""
    if not place:
        return value
    copy = content.copy()
    copy[place[0]] = _changed(content[place[0]], place[1:], value)
    return copy


def _check_harmless(error: Exception) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2500


_IN_CONFIGS = [(name, place) for name, config in _CONFIGS.items() for place in places(config)]


@given(where=st.sampled_from(_IN_CONFIGS), value=_HOSTILE)
def test_a_hostile_value_anywhere_in_a_config_is_taken_or_refused_in_one_line(where, value):
    name, place = where
    config = _changed(_CONFIGS[name], place, value)
    try:
        lora_layers(config, Server(max_loras=8, rank=16, tensor_parallel=2))
    except InputError as error:
        _check_harmless(error)


@given(place=st.sampled_from([*places(_ADAPTER)]), value=_HOSTILE)
def test_a_hostile_value_anywhere_in_an_adapter_is_taken_or_refused_in_one_line(
    tmp_path_factory, place, value
):
    path = tmp_path_factory.getbasetemp() / "adapter_config.json"
    path.write_text(json.dumps(_changed(_ADAPTER, place, value)))
    try:
        found = read_adapter(str(path))
        lora_layers(_CONFIGS["llama-3.1-8b"], Server(max_loras=8, rank=16), found)
    except InputError as error:
        _check_harmless(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200000, "cannot be read as JSON: nested too deep"),
        (
            b'{"hidden_size": ' + b"9" * 5000 + b"}",
            "as JSON: a number in it is too long: more than 4300 digits$",
        ),
        (b"\xff\xfe", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "cannot be read as JSON: .*BOM"),
        (b" " * (LARGEST_BYTES + 1), "larger than the 16777216 bytes"),
        (b"", "cannot be read as JSON"),
        (b"null", "must hold a JSON object: got NoneType"),
    ],
)
@pytest.mark.parametrize(
    ("read", "name"), [(read_config, "config.json"), (read_adapter, "adapter_config.json")]
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, read, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=message) as info:
        read(str(tmp_path))
    _check_harmless(info.value)
    assert name in str(info.value)


def test_a_pipe_or_a_folder_in_place_of_a_config_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "adapter_config.json").mkdir()

    with pytest.raises(InputError, match=r"config\.json: not a file but a pipe or a device"):
        read_config(str(tmp_path))
    with pytest.raises(InputError, match=r"adapter_config\.json: Is a directory"):
        read_adapter(str(tmp_path))


@pytest.mark.parametrize("path", ["\0", "~nobody-at-all/x", "x" * 5000, "\x1b[2J", ""])
def test_a_path_that_cannot_be_is_refused_in_one_line(path):
    with pytest.raises(InputError, match=r"no such file|has no config") as info:
        read_config(path)
    assert str(info.value).isprintable()
