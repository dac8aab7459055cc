"""What LoRA's kernels take inside a real server's step, beside the times that a folder keeps.

    python studies/profiled.py DIR MODEL --rank 16 [--layers 8] [--requests 8,32,128] [-o RAW.json]

DIR is what ``autotune run`` wrote for the model, and MODEL a folder with the ``config.json`` of a
dense language model. vLLM's engine serves it with random weights, once by its defaults and once
with the folder. PyTorch's profiler then records some steps in which every request gets a token.
Printed for each kernel of a projection: how often a step has it, and its time, microseconds, in the
server, with the zeroing before a shrink, and as the folder keeps it. The base layer's own product
runs between a shrink and its expand.
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


def kernels(ran: Sequence[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """Of every LoRA kernel, in order: its op and its length, with the zeroing before a shrink."""
    zeroing = 0.0
    for name, _, length in ran:
        if "_lora_shrink" in name:
            yield "shrink", zeroing + length
        elif "_lora_expand" in name:
            yield "expand", length
        zeroing = length if "Fill" in name or "memset" in name.lower() else 0.0


def by_kernel(
    ran: Sequence[tuple[str, float, float]], layers: int
) -> dict[tuple[str, str], tuple[int, float]]:
    """By projection and op, how often a step has it, and the median of its lengths.

    An embedding with LoRA has an expand alone and begins a step; the logits come last.
    """
    every = list(kernels(ran))
    step = max(1, len(every) // PROFILED)
    lengths = defaultdict(list)
    for index, (op, length) in enumerate(every):
        place = index % step - int(every[0][0] == "expand")
        name = PROJECTIONS[place // 2 % len(PROJECTIONS)]
        if place < 0:
            name = "embed_tokens"
        elif place // 2 >= len(PROJECTIONS) * layers:
            name = "lm_head"
        lengths[name, op].append(length)
    return {
        key: (len(those) // PROFILED, statistics.median(those)) for key, those in lengths.items()
    }


def kept(folder: Path, plan: StudyPlan, *, column: str) -> dict[tuple[int, str, str], float]:
    """By batch size, projection and op, the time that a folder keeps of a kernel."""
    path = provenance_in(folder, prefixes_in(folder)[0])
    figures = {
        KernelShape.from_mapping(entry["shape"]): entry[column]
        for of_file in read_entries(path).values()
        for entry in of_file.values()
    }
    return {
        (shape.num_tokens, name, shape.op.value): figures.get(shape, math.nan)
        for shape, layers in plan.layers.items()
        for name in ("embed_tokens", *PROJECTIONS, "lm_head")
        if name in layers
    }


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
    counts, layers = [int(each) for each in given.requests.split(",")], given.layers
    with tempfile.TemporaryDirectory() as scratch:
        config = json.loads((given.model / "config.json").read_text())
        small = Path(scratch) / "config.json"
        small.write_text(json.dumps({**config, "num_hidden_layers": layers}))
        plan = StudyPlan.of_model(str(small)).with_model({}, {"cudagraph_capture_sizes": counts})
        plan = plan.override(max_loras=8, rank=given.rank, tokens=counts)
        load = Load(requests=tuple(counts), inputs=(INPUT,), outputs=(64,), repeats=1, at_once=True)
        served = ServedModel.of(plan, Path(scratch), load)
        job = {**served.job(load, has_lora=True, tells_tokens=False), "requests": counts}
        raw = dict(engines(job, given.folder))
        rows = []
        print("requests  engine   projection    op      in the server     kept")
        for count in counts:
            for name, found in raw.items():
                expected = kept(given.folder, plan, column=ENGINES[name])
                sums = [0.0, 0.0]
                for (layer, op), (times, length) in by_kernel(found[str(count)], layers).items():
                    figures = (length, expected.get((count, layer, op), math.nan))
                    place = {"requests": count, "engine": name, "projection": layer, "op": op}
                    known = None if math.isnan(figures[1]) else figures[1]
                    times_of = {"in_the_server_us": round(length, 3), "kept_us": known}
                    rows.append({**place, "a_step": times, **times_of})
                    cells = "  ".join(f"{each:9.2f}" for each in figures)
                    print(f"{count:8}  {name:8} {layer:13} {op:7} {times:2} x {cells}")
                    sums = [one + times * figure for one, figure in zip(sums, figures, strict=True)]
                print(f"{count:8}  {name:8} all           {'':12} {sums[0]:9.2f}  {sums[1]:9.2f}")
        if given.output is not None:
            lines = ",\n".join(map(json.dumps, rows))
            given.output.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
