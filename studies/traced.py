"""Trace a real vLLM engine with dummy weights, and print what it looks up.

    python studies/traced.py MODEL [-o trace.jsonl] [--layers N] [--capture 1,2,4,16,64]
    python studies/traced.py MODEL --folder DIR …
    python studies/traced.py MODEL --folder DIR --compare [-o compiles.json]

MODEL is a folder with a ``config.json`` whose layers are named as Llama's and Qwen3's are. The
engine runs below ``autotune trace``. It starts, then serves prompts of several lengths with an
adapter of random weights. Before that it runs the same without a trace, and the time of the
prompts, in which every kernel is looked up, is printed for both. With a tuned folder the engine
runs once, traced, and is asked for other lengths. Either way vLLM's own monitor counts the kernels
that are compiled while it serves.

``--compare`` starts three engines side by side: with vLLM's defaults, with the folder, and with the
folder and ``AUTOTUNE_WARM=1``. Each serves prompts of many lengths, and the script prints for each
how long its start took and what it compiled while it served, as a JSON line.

The engine is in one process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``), which calls the plugin itself.
vLLM finds the plugin only where the package's ``dist-info`` is on the path, with its entry points:
after ``pip install``, or with a folder ``lora_autotune-0.dist-info`` on PYTHONPATH that holds
``METADATA`` (``Name: lora-autotune`` and ``Version: 0``) and an ``entry_points.txt`` as in
``pyproject.toml``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from autotune.cli.trace import run_traced
from autotune.launch.sizes import sizes_text
from autotune.plan.traced import read_trace
from autotune.trace import WARM
from autotune.trace.plugin import install

#: Lengths of prompts, in tokens. None is captured, so every step of them looks kernels up.
PROMPTS = (1024, 2048, 1024, 3000)

#: Lengths of prompts for an engine with a tuned folder: others than those that were traced.
OTHERS = (700, 1500, 2600, 300, 37, 5)

#: Lengths of prompts for a comparison: below, at and beyond 64, multiples of 16 and others.
MANY = (
    *(5, 16, 33, 64, 65, 80, 100, 128, 129, 200, 256, 300, 400, 512, 513, 600, 700, 768, 900),
    *(1000, 1024, 1100, 1280, 1500, 1536, 1700, 1920, 2000, 2048, 2300, 2560, 2600, 3000, 3072),
    *(3333, 3500, 3600, 3840, 4000),
)

#: The engines of a comparison: whether they have the folder, and what else they are started with.
ENGINES: dict[str, tuple[bool, dict[str, str]]] = {
    "defaults": (False, {}),
    "folder": (True, {}),
    "folder, warm": (True, {WARM: "1"}),
}

#: The share of the GPU's memory that has to be free for an engine, and what it gets for keys and
#: values. Several engines fit on a GPU, and none of them is measured for its use of memory.
SHARE, CACHE_BYTES = 0.25, 2**30

#: Where the first engine of a comparison looks for a free port.
PORT = 21_000 + os.getpid() % 10_000

#: The logger of vLLM's monitor of compiles.
MONITOR = "vllm.utils.jit_monitor"

#: The variable that names vLLM's folder of tuned files.
FOLDER = "VLLM_TUNED_CONFIG_FOLDER"

#: How often the prompts are served for their time; the first round warms up.
ROUNDS = 12


def adapter_in(folder: Path, model: Path) -> str:
    """Write an adapter of random weights for one projection: vLLM then launches every kernel."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    out = heads * config.get("head_dim", hidden // heads)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    weights = {
        name.format("A"): torch.randn(16, hidden, dtype=torch.bfloat16),
        name.format("B"): torch.randn(out, 16, dtype=torch.bfloat16),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    table = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(table))
    return str(folder)


class Compiles(logging.Handler):
    """Counts the kernels that vLLM's monitor sees compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a compile, by the kernel's name."""
        found = re.search(r"during inference: (\w+)", record.getMessage())
        if record.name == MONITOR and found:
            self.counts[found.group(1)] += 1


def serve(model: Path, layers: int | None, sizes: list[int], lengths: tuple[int, ...]) -> None:
    """Start the engine, serve prompts, and print the median time of a round of them.

    Args:
        model: The folder of the model's ``config.json``.
        layers: How many layers; None for the model's own number.
        sizes: Batch sizes to capture, in tokens.
        lengths: Of the prompts, in tokens.
    """
    install()
    compiles = Compiles()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    depth = {} if layers is None else {"hf_overrides": {"num_hidden_layers": layers}}
    began = time.perf_counter()
    engine = LLM(
        model=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        enable_lora=True,
        max_loras=8,
        max_lora_rank=16,
        max_model_len=4096,
        enable_prefix_caching=False,
        gpu_memory_utilization=SHARE,
        kv_cache_memory_bytes=CACHE_BYTES,
        compilation_config={"cudagraph_capture_sizes": sizes},
        jit_monitor_verbose=True,
        **depth,
    )
    start_s = time.perf_counter() - began
    logging.getLogger("vllm").addHandler(compiles)
    params = SamplingParams(max_tokens=1, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": [5] * length} for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        request = LoRARequest("random", 1, adapter_in(Path(folder), model))
        times_s = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for prompt in prompts:
                engine.generate([prompt], params, lora_request=request, use_tqdm=False)
            times_s.append(time.perf_counter() - started)
    print(f"a round of prompts: {1e3 * statistics.median(times_s[1:]):.2f} ms", flush=True)
    print(f"compiled while serving: {dict(compiles.counts) or 'nothing'}", flush=True)
    found = {"start_s": round(start_s, 1), "late": compiles.counts.total(), **compiles.counts}
    print(json.dumps(found), flush=True)


def compare(command: list[str], folder: Path, output: Path | None) -> None:
    """Start the engines of ``ENGINES`` side by side, and print what each compiled as it served."""
    with contextlib.ExitStack() as stack:
        started = {}
        for number, (name, (has_folder, variables)) in enumerate(ENGINES.items()):
            environ = {k: v for k, v in os.environ.items() if k not in (WARM, FOLDER)} | variables
            # Else two that start at the same moment may choose the same free port.
            environ["VLLM_PORT"] = str(PORT + 100 * number)
            if has_folder:
                environ[FOLDER] = str(folder.resolve())
            # A cache of its own: else an engine loads what another has compiled.
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            environ |= {"TRITON_CACHE_DIR": cache, "VLLM_DISABLE_COMPILE_CACHE": "1"}
            started[name] = stack.enter_context(
                subprocess.Popen(  # noqa: S603 - this script
                    command, env=environ, stdout=subprocess.PIPE, text=True
                )
            )
        rows = {}
        for name, engine in started.items():
            told, _ = engine.communicate()
            if engine.returncode:
                sys.exit(f"the engine ({name}) ended with {engine.returncode}")
            rows[name] = json.loads(told.splitlines()[-1])
            print(json.dumps({"engine": name, **rows[name]}), flush=True)
    if output is not None:
        output.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    """Serve without a trace, then with one, and print every distinct look-up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--capture", default="1,2,4,16,64")
    parser.add_argument("--folder", type=Path, help="vLLM's tuned files")
    parser.add_argument("--compare", action="store_true", help="three engines; needs --folder")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compare and given.folder is None:
        parser.error("--compare needs --folder")
    if given.serve:
        sizes = [int(size) for size in given.capture.split(",")]
        lengths = MANY if given.compare else PROMPTS if given.folder is None else OTHERS
        serve(given.model, given.layers, sizes, lengths)
        return
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    command = [sys.executable, *sys.argv, "--serve"]
    if given.compare:
        compare(command, given.folder, given.output)
        return
    if given.folder is None:
        subprocess.run(command, check=True)  # noqa: S603 - this script
    else:
        os.environ[FOLDER] = str(given.folder.resolve())
    output = given.output or Path("trace.jsonl")
    code = run_traced(command, output)
    trace = read_trace(output)
    for kind in trace.kinds:
        those = [each for each in trace.asked if each.shape.without_batch == kind]
        asked = ", ".join(f"{each.shape.num_tokens} {each.when} x{each.count}" for each in those)
        print(f"{kind.op.value} {sizes_text(kind)}, {those[0].layers} layers: {asked}")
    sys.exit(code)


if __name__ == "__main__":
    main()
