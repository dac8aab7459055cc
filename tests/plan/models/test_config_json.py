"""Finding and reading a model's ``config.json``."""

from __future__ import annotations

import sys

import pytest
from huggingface_hub import constants

from autotune.errors import InputError
from autotune.plan.models import read_config


def test_a_config_is_found_by_its_path_or_its_folder(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"architectures": ["LlamaForCausalLM"]}')

    assert read_config(str(path)) == read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: cannot be read as JSON: Expecting property name"),
        ("[1]", "config.json: must hold a JSON object: got list"),
        (b"\xff\xfe\x00", "config.json: not UTF-8: 'utf-8' codec"),
    ],
)
def test_a_file_without_a_json_object_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(InputError, match=message):
        read_config(str(tmp_path))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the folder has no config\.json; give the path of one"):
        read_config(str(tmp_path))


def test_a_path_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"/no/such/model: no such file or folder; give the path"):
        read_config("/no/such/model")


def test_a_hub_id_without_huggingface_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(InputError, match=r"pip install '.*\[hub\]' .*, or get its config"):
        read_config("meta-llama/Llama-3.1-8B")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(InputError, match=r"config.json cannot be had from .* download the") as info:
        read_config("meta-llama/Llama-3.1-8B")
    assert "\n" not in str(info.value)
