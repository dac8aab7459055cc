"""What LoRA's kernels take inside a real server's step, beside the times that a folder keeps.

    python studies/profiled.py DIR MODEL --rank 16 [--layers 8] [--requests 8,32,128] [-o RAW.json]

DIR is what ``autotune run`` wrote for the model, and MODEL a folder with the ``config.json`` of a
dense language model. vLLM's engine serves it with random weights, once by its defaults and once
with the folder. PyTorch's profiler then records some steps in which every request gets a token.
Printed for each projection, in microseconds: the two kernels by themselves, both with the zeroing
before them and the gaps between them, from the end of the base layer's last kernel on, and the sum
of the figures that the folder keeps for the two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from autotune.export.names import prefixes_in
from autotune.export.provenance import provenance_in, read_entries
from autotune.launch.shape import KernelShape
from autotune.plan.study import StudyPlan
from autotune.serve.job import Load, ServedModel

#: The projections of a layer in the order in which they run.
PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")

#: Tokens of a prompt; steps before the profile, and in it.
INPUT, BEFORE, PROFILED = 64, 20, 8

#: The engines, by what the folder calls the times of their kernels.
ENGINES = {"default": "default_latency_us", "folder": "latency_us"}

#: Two engines share the GPU: how much of it has to be free for one, and what each gets for keys and
#: values, bytes.
SHARED = ("--gpu-memory-utilization=0.05", f"--kv-cache-memory-bytes={2**31}")

#: What an engine prints once it can serve.
READY = "READY"

#: The variable that names vLLM's folder of tuned files.
FOLDER = "VLLM_TUNED_CONFIG_FOLDER"


def serve() -> None:
    """Start the engine of the job on stdin, serve at the next line, and tell what was launched."""
    job = json.loads(sys.stdin.readline())
    torch: Any = import_module("torch")
    vllm: Any = import_module("vllm")
    parser = import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    given = vllm.EngineArgs.add_cli_args(parser).parse_args(list(job["arguments"]))
    engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs.from_cli_args(given))
    request = import_module("vllm.lora.request").LoRARequest
    adapters = [request(f"adapter-{n}", n, path) for n, path in enumerate(job["adapters"], start=1)]
    params = vllm.SamplingParams(
        max_tokens=BEFORE + PROFILED + 12, temperature=0.0, ignore_eos=True, detokenize=False
    )
    print(READY, flush=True)
    sys.stdin.readline()
    found = {}
    for count in job["requests"]:
        for _ in range(2):  # once for nothing: the profiler has to be warm, too
            for index in range(count):
                prompt = {"prompt_token_ids": [3 + (7 * index + k) % 1000 for k in range(INPUT)]}
                adapter = adapters[index % len(adapters)]
                engine.add_request(f"{index}", prompt, params, lora_request=adapter)
            for _ in range(BEFORE):
                engine.step()
            torch.cuda.synchronize()
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            ) as profile:
                for _ in range(PROFILED):
                    engine.step()
                torch.cuda.synchronize()
            while engine.has_unfinished_requests():
                engine.step()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            found[count] = list(launches(json.loads(path.read_text())["traceEvents"]))
    print(json.dumps(found), flush=True)


def launches(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """What ran on the GPU, in order: its name, its start and its length, microseconds."""
    on_gpu = [each for each in events if each.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy")]
    for each in sorted(on_gpu, key=lambda event: float(event["ts"])):
        yield each["name"], float(each["ts"]), float(each["dur"])


def pairs(ran: Sequence[tuple[str, float, float]]) -> Iterator[tuple[float, float, float]]:
    """Of every shrink and expand: the length of each, and of both with what is around them."""
    base_end, shrunk = 0.0, 0.0
    for name, start, length in ran:
        if "_lora_shrink" in name:
            shrunk = length
        elif "_lora_expand" in name:
            yield shrunk, length, start + length - base_end
            base_end = start + length
        elif "Fill" not in name and "memset" not in name.lower():
            base_end = start + length


def by_projection(
    ran: Sequence[tuple[str, float, float]], layers: int
) -> dict[str, tuple[float, ...]]:
    """The medians of ``pairs`` by projection; those of the logits come after a step's layers."""
    every = list(pairs(ran))
    in_layers = len(PROJECTIONS) * layers
    groups = defaultdict(list)
    for index, pair in enumerate(every):
        place = index % max(1, len(every) // PROFILED)
        name = PROJECTIONS[place % len(PROJECTIONS)] if place < in_layers else "lm_head"
        groups[name].append(pair)
    return {
        name: tuple(statistics.median(values) for values in zip(*group, strict=True))
        for name, group in groups.items()
    }


def kept(folder: Path, plan: StudyPlan, *, column: str) -> dict[tuple[int, str], float]:
    """By batch size and projection, the sum of what a folder keeps of its two kernels."""
    path = provenance_in(folder, prefixes_in(folder)[0])
    figures = {
        KernelShape.from_mapping(entry["shape"]): entry[column]
        for of_file in read_entries(path).values()
        for entry in of_file.values()
    }
    sums: dict[tuple[int, str], float] = defaultdict(float)
    for shape, layers in plan.layers.items():
        for name in (*PROJECTIONS, "lm_head"):
            if name in layers:
                sums[shape.num_tokens, name] += figures.get(shape, math.nan)
    return sums


def engines(job: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Start both engines side by side, let one serve after the other, and give what each told."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name in ENGINES:
            environ = {key: value for key, value in os.environ.items() if key != FOLDER}
            environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            # Else two that start at the same moment may choose the same free port.
            environ["VLLM_PORT"] = str(21_000 + os.getpid() % 10_000 + 100 * len(started))
            if name == "folder":
                environ[FOLDER] = str(folder.resolve())
            command = [sys.executable, __file__, "--serve"]
            engine = stack.enter_context(
                subprocess.Popen(  # noqa: S603 - this script
                    command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            print(json.dumps(job), file=engine.stdin, flush=True)
            started[name] = engine
        for engine in started.values():
            _next(engine, READY)
        for name, engine in started.items():
            print(file=engine.stdin, flush=True)
            yield name, json.loads(_next(engine, "{"))


def _next(engine: subprocess.Popen[str], start: str) -> str:
    """The next line that starts so: vLLM prints others."""
    for line in engine.stdout or ():
        if line.startswith(start):
            return line
    sys.exit(f"an engine ended with {engine.wait()}")


def main() -> int:
    """Serve twice and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--requests", default="8,32,128")
    parser.add_argument("-o", "--output", type=Path, metavar="RAW.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return 0
    counts = [int(each) for each in given.requests.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        config = json.loads((given.model / "config.json").read_text())
        small = Path(scratch) / "config.json"
        small.write_text(json.dumps({**config, "num_hidden_layers": given.layers}))
        plan = StudyPlan.of_model(str(small)).with_model({}, {"cudagraph_capture_sizes": counts})
        plan = plan.override(max_loras=8, rank=given.rank, tokens=counts)
        load = Load(requests=tuple(counts), inputs=(INPUT,), outputs=(64,), repeats=1)
        served = ServedModel.of(plan, Path(scratch), load, after=SHARED)
        job = {**served.job(load, has_lora=True), "requests": counts}
        raw = dict(engines(job, given.folder))
        if given.output is not None:
            given.output.write_text(json.dumps(raw) + "\n", encoding="utf-8")
        print("requests  engine   projection     shrink   expand    whole     kept")
        for count in counts:
            for name, found in raw.items():
                expected = kept(given.folder, plan, column=ENGINES[name])
                for projection, figures in by_projection(found[str(count)], given.layers).items():
                    shown = (*figures, expected.get((count, projection), math.nan))
                    cells = "  ".join(f"{each:7.2f}" for each in shown)
                    print(f"{count:8}  {name:8} {projection:13} {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
