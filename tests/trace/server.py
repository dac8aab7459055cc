"""A small server for tests: it looks kernels up as vLLM does, under vLLM's names.

``tests/vllm/test_traced.py`` has vLLM's own files. This one starts in a tenth of a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.vllm.releases import ROOT

#: ``lora/ops/triton_ops/utils.py``.
_UTILS = """
import functools

@functools.lru_cache
def get_lora_op_configs(
    op_type, max_loras, batch, hidden_size, rank, num_slices, add_inputs=None,
    moe_intermediate_size=None,
):
    if rank == 13:
        raise KeyError(op_type)
    return {"block_m": batch}
"""

#: ``lora/ops/triton_ops/lora_expand_op.py``, which binds the name when it is imported.
_OPS = """
from vllm.lora.ops.triton_ops.utils import get_lora_op_configs

def _lora_expand(inputs, lora_b_weights, num_active_loras, batch, rank=16):
    return get_lora_op_configs(
        op_type="expand", max_loras=9, batch=batch,
        hidden_size=max(each.shape[-2] for each in lora_b_weights), rank=rank,
        num_slices=len(lora_b_weights), add_inputs=True,
    )

def _lora_shrink(inputs, lora_a_weights, num_active_loras, batch, rank=16):
    return get_lora_op_configs(
        "shrink", max_loras=9, batch=batch, hidden_size=lora_a_weights[0].shape[-1], rank=rank,
        num_slices=len(lora_a_weights),
    )
"""

#: What every script starts with. A worker has ``layers`` layers of a fused qkv and an output.
_START = """
import sys
from dataclasses import dataclass
from autotune.trace.plugin import install
install()
from vllm.lora.ops.triton_ops import ops, utils

@dataclass(frozen=True)
class Weight:
    shape: tuple
    place: int
    dtype: str = "torch.bfloat16"

    def data_ptr(self):
        return self.place

def forward(batch, layers=4):
    for layer in range(layers):
        for sizes in ((4096, 1024, 1024), (4096,)):
            place = 100 * layer + len(sizes)
            b = [Weight((8, 1, size, 16), place) for size in sizes]
            a = [Weight((8, 1, 16, 4096), place) for size in sizes]
            ops._lora_shrink(None, a, 9, batch)
            ops._lora_expand(None, b, 9, batch)

def compile_or_warm_up_model(sizes=(1, 2, 64)):
    for size in sizes:
        forward(size)
"""


def package(folder: Path) -> Path:
    """The server's package; returns the folder to put on the path."""
    deepest = folder / "vllm" / "lora" / "ops" / "triton_ops"
    deepest.mkdir(parents=True)
    for each in (deepest, *list(deepest.parents)[:3]):
        (each / "__init__.py").touch()
    (deepest / "utils.py").write_text(_UTILS)
    (deepest / "ops.py").write_text(_OPS)
    return folder


def environment(folder: Path, trace: Path | None, **more: str) -> dict[str, str]:
    """The environment variables of a server."""
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    traced = {} if trace is None else {"AUTOTUNE_TRACE": str(trace)}
    clean = {name: value for name, value in os.environ.items() if name != "AUTOTUNE_TRACE"}
    return {**clean, "PYTHONPATH": path, **traced, **more}


def command(script: str) -> list[str]:
    """The command of a server that runs a script after its start."""
    return [sys.executable, "-c", _START + script]


def start(script: str, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """A server that runs a script after its start."""
    return subprocess.Popen(  # noqa: S603 - the script above
        command(script),
        env=dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
