"""What ``bench --server`` calls and types is there in every supported release of vLLM."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from autotune.launch.release import is_since
from autotune.serve import engine_flags, http_client
from autotune.serve.installed import Installed
from autotune.serve.side_by_side import compiled_in
from tests.vllm.conftest import need
from tests.vllm.releases import RELEASES

#: The releases in which vLLM has a monitor of compiles.
WITH_MONITOR = [each for each in RELEASES if is_since(each, "0.21")]

#: Flags that autotune types for every server.
ALWAYS = (
    *("model", "load-format", "max-model-len", "enable-prefix-caching", "skip-tokenizer-init"),
    *("enable-lora", "max-loras", "max-lora-rank", "tensor-parallel-size"),
    *("kv-cache-memory-bytes", "gpu-memory-utilization"),
)


@pytest.fixture(params=RELEASES)
def release(request) -> Path:
    """Each release's folder in turn."""
    return need(request.param, request.config)


def parameters(path: Path, name: str) -> list[str]:
    """The parameters of a function in a file, by their names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
    raise AssertionError(f"{path} has no {name}")


def fields(path: Path, name: str) -> set[str]:
    """The annotated names of a class in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return {
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
    raise AssertionError(f"{path} has no {name}")


def test_the_engine_takes_requests_and_steps_as_the_program_does(release):
    engine = release / "vllm" / "v1" / "engine" / "llm_engine.py"
    given = parameters(engine, "add_request")
    assert given[1:4] == ["request_id", "prompt", "params"]
    assert "lora_request" in given
    for name in ("step", "has_unfinished_requests", "from_engine_args"):
        assert parameters(engine, name)
    assert parameters(engine, "add_lora") == ["self", "lora_request"]


def test_what_the_program_imports_is_there(release):
    names = (release / "vllm" / "__init__.py").read_text()
    assert all(f'"{each}"' in names for each in ("LLMEngine", "EngineArgs", "SamplingParams"))
    parser = (release / "vllm" / "utils" / "argparse_utils.py").read_text()
    assert "class FlexibleArgumentParser" in parser
    arguments = release / "vllm" / "engine" / "arg_utils.py"
    assert parameters(arguments, "add_cli_args")
    assert parameters(arguments, "from_cli_args")
    requests = fields(release / "vllm" / "lora" / "request.py", "LoRARequest")
    assert {"lora_name", "lora_int_id", "lora_path"} <= requests
    sampling = fields(release / "vllm" / "sampling_params.py", "SamplingParams")
    assert {
        *("max_tokens", "temperature", "ignore_eos", "detokenize", "logprobs"),
    } <= sampling


def test_the_flags_that_every_server_gets_are_there(release):
    text = (release / "vllm" / "engine" / "arg_utils.py").read_text()
    for flag in ALWAYS:
        assert f'"--{flag}"' in text, flag


def test_every_flag_that_is_passed_on_is_there_in_the_newest_release(request):
    text = (need(RELEASES[-1], request.config) / "vllm/engine/arg_utils.py").read_text()
    passed = [*engine_flags._OF_MODEL.values(), *engine_flags._OF_BATCHES.values()]
    for flag in passed:
        assert f'"{flag}"' in text, flag


def test_the_client_has_the_flags_and_the_figures_that_are_read(release):
    text = (release / "vllm" / "benchmarks" / "serve.py").read_text()
    folder = release / "vllm" / "benchmarks"
    sets = "".join(each.read_text() for each in folder.rglob("*.py"))
    for flag in http_client.FLAGS:
        assert f'"{flag}"' in text or f'"{flag}"' in sets, flag
    for figure in http_client.FIGURES:
        metric = re.fullmatch(r"(mean|median|p99)_(\w+)_ms", figure)
        assert f'"{figure}"' in text or (metric and f'"{metric[2]}"' in text), figure


@pytest.mark.parametrize("version", WITH_MONITOR)
def test_a_compile_is_read_from_the_log_as_each_release_writes_it(version, request):
    folder = need(version, request.config) / "vllm"
    (path,) = folder.glob("*utils/jit_monitor.py")
    text = path.read_text()
    assert "Kernel JIT monitor activated" in text
    if not is_since(version, "0.25"):
        said = "Triton kernel JIT compilation during inference: _lora_expand_kernel. This causes"
        assert '"Triton kernel JIT compilation during inference: %s. "' in text
    else:
        said = "Triton JIT compilation during inference: _lora_expand_kernel (m=4). This causes"
        assert '"%s %s during inference: %s%s. "' in text
        assert 'event="JIT compilation"' in text, re.findall('event="[^"]*"', text)
    log = f"INFO Kernel JIT monitor activated\nWARNING {said} a latency spike\n"
    assert compiled_in(log) == {"_lora_expand_kernel": 1}


def test_every_compile_is_asked_for_where_a_release_can_tell_it(release):
    flag, text = "--jit-monitor-verbose", (release / "vllm/engine/arg_utils.py").read_text()
    installed = Installed(python="", release=release.name, platform="cuda", gpu="", gpus=1)
    assert installed.tells_compiles == ([flag] if f'"{flag}"' in text else [])


def test_a_log_without_the_monitor_tells_nothing_of_compiles():
    assert compiled_in("INFO started") is None
