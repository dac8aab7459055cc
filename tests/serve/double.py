"""A stand-in for an installed vLLM with a GPU: real processes, and a clock that its steps advance.

A GPU cannot be had for these tests. ``tests/vllm/test_engine_program.py`` holds the names and
flags that are used here against real releases.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

#: What ``torch.cuda`` answers.
GPU = "NVIDIA H100 80GB HBM3"

#: Milliseconds of a step of each server.
STEPS_MS = {"default": 10.0, "folder": 8.0, "default again": 10.3, "no LoRA": 6.0}

_TORCH = """
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: BEHAVIOUR["gpus"])
    get_device_name = staticmethod(lambda number=0: BEHAVIOUR["gpu"])
"""

_VLLM = """
__version__ = BEHAVIOUR["release"]
import argparse, os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace as Made

now = time.perf_counter()
time.perf_counter = lambda: now

STARTS = Path(__file__).with_name("starts")

def name_of(has_lora):
    if "VLLM_PORT" in os.environ:  # those that start at once count their ports
        return list(BEHAVIOUR["steps_ms"])[(int(os.environ["VLLM_PORT"]) - 21000) // 1000]
    if not has_lora:
        return "no LoRA"
    if os.environ.get("VLLM_TUNED_CONFIG_FOLDER"):
        return "folder again" if STARTS.exists() and "folder" in STARTS.read_text() else "folder"
    seen = STARTS.read_text().split("|") if STARTS.exists() else []
    return "default again" if "folder" in seen else "default"

class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        for flag in ("enable-lora", "skip-tokenizer-init", "no-enable-prefix-caching",
                     "jit-monitor-verbose", "fully-sharded-loras"):
            parser.add_argument(f"--{flag}", action="store_true")
        for flag in ("model", "load-format"):
            parser.add_argument(f"--{flag}")
        for flag in ("max-model-len", "max-loras", "max-lora-rank", "tensor-parallel-size",
                     "max-num-seqs", "max-num-batched-tokens", "kv-cache-memory-bytes"):
            parser.add_argument(f"--{flag}", type=int)
        parser.add_argument("--gpu-memory-utilization", type=float)
        return parser

    from_cli_args = staticmethod(lambda given: given)

class SamplingParams:
    def __init__(self, *, max_tokens, temperature, ignore_eos, detokenize, logprobs):
        self.max_tokens, self.logprobs = max_tokens, logprobs

class LLMEngine:
    @classmethod
    def from_engine_args(cls, given):
        self = cls()
        self.given, self.name, self.running = given, name_of(given.enable_lora), {}
        if BEHAVIOUR.get("needs") and BEHAVIOUR["needs"] not in os.environ:
            raise RuntimeError(f"{BEHAVIOUR['needs']} is not set")
        before = STARTS.read_text() + "|" if STARTS.exists() else ""
        STARTS.write_text(before + self.name)
        if self.name == BEHAVIOUR.get("dies") and not BEHAVIOUR["dies_at"]:
            print("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
            if BEHAVIOUR["how"] == "killed":
                os.kill(os.getpid(), 9)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        if self.name == BEHAVIOUR.get("hangs"):
            grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10**6)"])
            print("pids", os.getpid(), grandchild.pid, flush=True)
            Path(__file__).with_name("pids").write_text(f"{os.getpid()} {grandchild.pid}")
            time.sleep(10**6)
        global now
        now += BEHAVIOUR["starts_s"]
        if BEHAVIOUR["has_monitor"]:
            print("INFO Kernel JIT monitor activated; ...")
        return self

    def add_lora(self, lora_request):
        assert self.given.enable_lora
        assert not hasattr(self, "rounds"), "a request has waited for an adapter"
        self.loaded = [*getattr(self, "loaded", []), lora_request.lora_path]

    def add_request(self, request_id, prompt, params, arrival_time=None, lora_request=None):
        if self.given.enable_lora:
            assert lora_request.lora_path in self.loaded
            folder = Path(lora_request.lora_path)
            with Path(__file__).with_name("adapters").open("a") as file:
                print(folder, file=file)
            assert (folder / "adapter_config.json").is_file(), folder
            assert (folder / "adapter_model.safetensors").stat().st_size > 1000
        else:
            assert lora_request is None
        assert all(0 <= each for each in prompt["prompt_token_ids"])
        if not self.running:
            self.rounds = getattr(self, "rounds", 0) + 1
            if self.name == BEHAVIOUR.get("dies") and self.rounds == BEHAVIOUR["dies_at"]:
                os.kill(os.getpid(), 9)
            with Path(__file__).with_name("turns").open("a") as file:
                print(self.name, self.given.kv_cache_memory_bytes, file=file)
        self.running[request_id] = Made(params=params, tokens=[], lora=lora_request)

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        global now
        room = self.given.max_num_seqs or BEHAVIOUR["room"]
        served = dict(list(self.running.items())[:room])
        now += BEHAVIOUR["steps_ms"][self.name] / 1e3
        if self.name == "folder" and BEHAVIOUR["compiles"]:
            kernel = BEHAVIOUR["compiles"].pop()
            print(f"WARNING Triton JIT compilation during inference: {kernel}. This causes")
        outputs = []
        for name, each in served.items():
            each.tokens.append(7)
            if len(each.tokens) >= each.params.max_tokens:
                del self.running[name]
            outputs.append(Made(request_id=name, outputs=[Made(token_ids=tuple(each.tokens))]))
        return outputs
"""

_COMMAND = """
import argparse, json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from vllm import BEHAVIOUR, STARTS, name_of

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

def serve(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--tokenizer")
    parser.add_argument("--lora-modules", nargs="*")
    given, _ = parser.parse_known_args(arguments)
    assert (Path(given.tokenizer) / "tokenizer.json").is_file()
    name = name_of("--enable-lora" in arguments)
    STARTS.write_text(STARTS.read_text() + "|" + name if STARTS.exists() else name)
    if name == BEHAVIOUR.get("dies"):
        print("RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
        sys.exit(1)
    HTTPServer(("127.0.0.1", given.port), Healthy).serve_forever()

def bench(arguments):
    parser = argparse.ArgumentParser()
    for name in ("base-url", "model", "result-dir", "result-filename", "tokenizer"):
        parser.add_argument(f"--{name}")
    for name in ("num-prompts", "max-concurrency", "random-output-len"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--lora-modules", nargs="+")
    given, _ = parser.parse_known_args(arguments)
    step_s = BEHAVIOUR["steps_ms"][STARTS.read_text().split("|")[-1]] / 1e3
    count, tokens = given.num_prompts, given.random_output_len
    told = {
        "completed": count - BEHAVIOUR.get("unanswered", 0),
        "median_tpot_ms": step_s * 1e3,
        "output_throughput": count / step_s,
        "ttfts": [step_s] * count,
        "itls": [[step_s] * (tokens - 1)] * count,
    }
    Path(given.result_dir, given.result_filename).write_text(json.dumps(told))

if sys.argv[1] == "serve":
    serve(sys.argv[2:])
else:
    bench(sys.argv[3:])
"""

_FILES = {
    "torch/__init__.py": _TORCH,
    "vllm/__init__.py": _VLLM,
    "vllm/platforms/__init__.py": "class current_platform: device_type = BEHAVIOUR['platform']",
    "vllm/utils/__init__.py": "",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/cli/__init__.py": "",
    "vllm/entrypoints/cli/main.py": _COMMAND,
    "vllm/utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser",
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": (
        "from collections import namedtuple\n"
        "LoRARequest = namedtuple('LoRARequest', 'lora_name lora_int_id lora_path')"
    ),
}


def install(folder: Path, **behaviour: Any) -> Path:
    """Write the packages, which PYTHONPATH is to name.

    Args:
        folder: Is made.
        behaviour: What differs from a server that works: ``steps_ms``, by server; ``dies`` or
            ``hangs``, which server does at its start, ``how`` it dies, and ``dies_at``, in which
            round it is killed and not at its start; ``compiles``, the
            kernels that are compiled while the folder is served; ``unanswered``, how many requests
            the client gets no answer to; ``needs``, a variable without which no server starts;
            ``room``, how many requests run at once where no flag says it.
    """
    usual = {
        "release": "0.33.0",
        "platform": "cuda",
        "gpu": GPU,
        "gpus": 1,
        "starts_s": 20.0,
        "steps_ms": STEPS_MS,
        "how": "raises",
        "dies_at": 0,
        "compiles": [],
        "has_monitor": True,
        "room": 10**6,
    }
    said = f"BEHAVIOUR = {usual | behaviour!r}\n"
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said + textwrap.dedent(text))
    return folder


def write_model(folder: Path) -> Path:
    """A small model's config, in a folder."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 512,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder
