"""Small recordings with a known best configuration, for tests that need a Runner without a GPU."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "gpu": "NVIDIA Test-GPU",
    "provider": "builtin",
    "provider_version": "1",
    "torch": "2.13.0",
    "triton": "3.6.0",
    "driver": "580",
}

SHRINK = {
    "op": "shrink",
    "num_tokens": 16,
    "hidden_size": 4096,
    "rank": 16,
    "num_slices": 3,
    "max_loras": 8,
}
EXPAND = {"op": "expand", "num_tokens": 64, "slice_sizes": [4096, 1024, 1024]} | {
    "rank": 16,
    "max_loras": 8,
}

_AXES = {
    "block_m": (16, 32, 64),
    "block_n": (16, 32, 64),
    "block_k": (32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3),
}

#: The fastest configuration of every shape here, as ``latency_us`` says.
BEST = {"block_m": 32, "block_n": 16, "block_k": 64, "num_warps": 4, "num_stages": 3}

#: ``BEST`` with any number of stages: in a masked loop the sampler takes these for copies.
NEAR_BEST = {name: value for name, value in BEST.items() if name != "num_stages"}


def latency_us(config: dict[str, int]) -> float:
    """A bowl over the logarithms of the axes, lowest at ``BEST``, microseconds."""
    steps = (abs(math.log2(config[name] / best)) for name, best in BEST.items())
    return 10.0 + 4.0 * math.fsum(math.pow(step, 1.5) for step in steps)


def lines(shape: dict[str, Any]) -> list[dict[str, Any]]:
    """One line a configuration; the slowest is the default, and the fourth fails to launch."""
    found: list[dict[str, Any]] = []
    for values in itertools.product(*_AXES.values()):
        config = dict(zip(_AXES, values, strict=True))
        if shape["op"] == "shrink":
            config["split_k"] = 8
        samples = [round(latency_us(config) * (1 + 0.001 * (i % 5)), 3) for i in range(15)]
        found.append({"shape": shape, "config": config, "outcome": "ok", "samples_us": samples})
    found[3]["outcome"] = "launch_failed"
    found[3]["reason"] = "OutOfResources: shared memory"
    del found[3]["samples_us"]
    max((line for line in found if "samples_us" in line), key=lambda line: line["samples_us"][0])[
        "is_default"
    ] = True
    return found


def write_recording(path: Path, *shapes: dict[str, Any], **environment: str) -> Path:
    """Write a recording of these shapes; of ``SHRINK`` and ``EXPAND`` by default."""
    header = {"schema": "autotune-recording/1", "environment": ENVIRONMENT | environment}
    with gzip.open(path, "wt") as file:
        for line in (header, *itertools.chain(*map(lines, shapes or (SHRINK, EXPAND)))):
            file.write(json.dumps(line) + "\n")
    return path
