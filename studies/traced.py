"""Trace a real vLLM engine with dummy weights, and print what it looks up.

    python studies/traced.py MODEL [-o trace.jsonl] [--layers N] [--capture 1,2,4,16,64]

MODEL is a folder with a ``config.json`` whose layers are named as Llama's and Qwen3's are. The
engine runs below ``autotune trace``. It starts, then serves prompts of several lengths with an
adapter of random weights. Before that it runs the same without a trace, and the time of the
prompts, in which every kernel is looked up, is printed for both.

The engine is in one process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``), which calls the plugin itself.
vLLM finds the plugin only where the package's ``dist-info`` is on the path, with its entry points:
after ``pip install``, or with a folder ``lora_autotune-0.dist-info`` on PYTHONPATH that holds
``METADATA`` (``Name: lora-autotune`` and ``Version: 0``) and an ``entry_points.txt`` as in
``pyproject.toml``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autotune.cli.trace import run_traced
from autotune.launch.sizes import sizes_text
from autotune.plan.traced import read_trace
from autotune.trace.plugin import install

#: Lengths of prompts, in tokens. None is captured, so every step of them looks kernels up.
PROMPTS = (1024, 2048, 1024, 3000)

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


def serve(model: Path, layers: int | None, sizes: list[int]) -> None:
    """Start the engine, serve, and print the median time of a round of prompts."""
    install()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    depth = {} if layers is None else {"hf_overrides": {"num_hidden_layers": layers}}
    engine = LLM(
        model=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        enable_lora=True,
        max_loras=8,
        max_lora_rank=16,
        max_model_len=4096,
        enable_prefix_caching=False,
        compilation_config={"cudagraph_capture_sizes": sizes},
        **depth,
    )
    params = SamplingParams(max_tokens=1, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": [5] * length} for length in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        request = LoRARequest("random", 1, adapter_in(Path(folder), model))
        times_s = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            for prompt in prompts:
                engine.generate([prompt], params, lora_request=request, use_tqdm=False)
            times_s.append(time.perf_counter() - started)
    print(f"a round of prompts: {1e3 * statistics.median(times_s[1:]):.2f} ms", flush=True)


def main() -> None:
    """Serve without a trace, then with one, and print every distinct look-up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("trace.jsonl"))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--capture", default="1,2,4,16,64")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.model, given.layers, [int(size) for size in given.capture.split(",")])
        return
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    command = [sys.executable, *sys.argv, "--serve"]
    subprocess.run(command, check=True)  # noqa: S603 - this script
    code = run_traced(command, given.output)
    trace = read_trace(given.output)
    for kind in trace.kinds:
        those = [each for each in trace.asked if each.shape.without_batch == kind]
        asked = ", ".join(f"{each.shape.num_tokens} {each.when} x{each.count}" for each in those)
        print(f"{kind.op.value} {sizes_text(kind)}, {those[0].layers} layers: {asked}")
    sys.exit(code)


if __name__ == "__main__":
    main()
