"""The process that asks vLLM, beside packages of that name that do what vLLM may do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.plan.models import Server, UnknownModel, lora_layers
from autotune.plan.models.asking import asked_layers, question

QUESTION = {"folder": "/nowhere", "tensor_parallel": 1, "flags": {}}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a package that is found in place of vLLM."""

    def install(source: str) -> Path:
        package: Path = tmp_path / "packages" / "vllm"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.syspath_prepend(str(package.parent))
        return package

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return install


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("autotune-ask-vllm-*.log"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise ImportError('libcudart.so.13: no such file')", "ImportError: libcudart.so.13: no"),
        ("raise ValueError('first line\\nsecond line')", "ValueError: first line; its log"),
        ("assert 1 > 2", "AssertionError: assert 1 > 2; its log"),
        ("import os; print('many words'); os._exit(3)", "its process ended without an answer"),
        ("", "No module named 'vllm.platforms'"),
    ],
    ids=["import", "fault", "assertion", "death", "another package"],
)
def test_a_fault_is_told_in_a_line_that_names_the_log(source, told, installed, tmp_path):
    installed(source)
    with pytest.raises(InputError) as caught:
        question.ask(QUESTION)

    message = str(caught.value)
    assert message.startswith("vLLM cannot say which layers it makes of the model: ")
    assert told in message
    assert "\n" not in message
    (log,) = logs(tmp_path)
    assert message.endswith(f"its log is {log}")
    if "many words" in source:
        assert "many words" in log.read_text()


@pytest.mark.slow
def test_vllm_is_ended_where_it_takes_too_long(installed, tmp_path, monkeypatch):
    marker = tmp_path / "alive"
    package = installed("")
    (package.parent / "sitecustomize.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(question, "_LIMIT_S", 3)
    with pytest.raises(InputError, match="no answer within 3 s; its log is"):
        question.ask(QUESTION)

    if marker.exists():  # else it was ended before its first line
        with pytest.raises(ProcessLookupError):
            os.kill(int(marker.read_text()), 0)


@pytest.mark.slow
def test_the_process_sees_no_gpu_no_network_and_no_trace(installed, tmp_path, monkeypatch):
    seen = tmp_path / "seen.json"
    monkeypatch.setenv("AUTOTUNE_TRACE", str(tmp_path / "trace.jsonl"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    installed(
        "import json, os, pathlib\n"
        f"pathlib.Path({str(seen)!r}).write_text(json.dumps(dict(os.environ)))\n"
        "raise ValueError('enough')\n"
    )
    with pytest.raises(InputError, match="enough"):
        question.ask(QUESTION)

    environment = json.loads(seen.read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "AUTOTUNE_TRACE" not in environment


def test_without_vllm_the_error_names_the_table_and_the_trace(tmp_path):
    if question.has_vllm():
        pytest.skip("vLLM is installed")
    with pytest.raises(InputError, match=r"not installed beside autotune; .*table .*--trace FILE"):
        asked_layers(str(tmp_path), Server(max_loras=8, rank=16))


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["Rwkv"]},
        {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "text_config": {"model_type": "rwkv"},
        },
        {"architectures": ["LlamaForCausalLM"], "num_experts": 8},
    ],
)
def test_what_the_table_does_not_know_names_the_other_ways(config):
    with pytest.raises(UnknownModel, match=r"--ask-vllm; or .*--trace FILE, or .* by hand"):
        lora_layers(config, Server(max_loras=8, rank=16))


def test_nothing_heavy_is_imported_to_know_whether_vllm_is_there():
    program = (
        "import sys, autotune.plan.model as model; model.has_vllm();"
        "print([each for each in ('torch', 'vllm', 'transformers') if each in sys.modules])"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, check=True)  # noqa: S603 - this Python
    assert done.stdout == "[]\n"
