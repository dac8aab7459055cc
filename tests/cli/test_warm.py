"""Kernels that a server compiles late, and ``autotune warm`` that compiles them beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

#: A server of one layer that captures up to 8 tokens and takes 64 in a step, given by hand.
STUDY = """
[lora]
max_loras = 2
rank = 16
[tokens]
counts = "auto"
max_num_batched_tokens = 64
max_num_seqs = 4
[[shapes]]
op = "shrink"
hidden_size = 64
num_slices = 1
"""

SMALL = {"block_m": 16, "block_n": 16, "block_k": 16, "split_k": 1, "group_size_m": 8}
SMALL |= {"num_warps": 2, "num_stages": 2, "num_ctas": 1}
LARGE = SMALL | {"block_m": 32}


def tuned(folder: Path, by_size: dict[int, dict[str, int]], gpu: str = "NVIDIA_H100") -> Path:
    """A folder with a row for each batch size of the layer."""
    (folder / "tuned").mkdir()
    rows = {str(size): {"64": {"16": config}} for size, config in by_size.items()}
    (folder / "tuned" / f"{gpu}_SHRINK.json").write_text(json.dumps({"3": {"1": rows}}))
    (folder / "study.toml").write_text(STUDY)
    return folder / "tuned"


def found(autotune, *flags: str) -> dict[str, Any]:
    ended = autotune("check", "tuned", *flags, "--json")
    assert ended.code == 0, ended.out + ended.err
    report: dict[str, Any] = json.loads(ended.out)
    return report


def test_check_counts_the_kernels_that_a_server_compiles_late(autotune):
    # 16 and 32 rows are both launched at the start, the latter at 64 tokens alone.
    tuned(autotune.folder, {1: SMALL, 8: SMALL, 64: LARGE})
    report = found(autotune, "study.toml")
    assert report["late_kernels"] == 2
    (finding,) = (each for each in report["findings"] if each["kind"] == "late_compile")
    assert "shrink m=16,k=64,n=16" in finding["message"]  # 16 rows at a multiple of 16
    assert "shrink m=37,k=64,n=16" in finding["message"]  # 32 rows at another size
    assert found(autotune)["late_kernels"] is None


def test_check_finds_none_where_the_start_launches_every_kernel(autotune):
    tuned(autotune.folder, dict.fromkeys((1, 8, 64), SMALL))
    assert found(autotune, "study.toml")["late_kernels"] == 0
    out = autotune("check", "tuned", "study.toml").out
    assert out.splitlines()[-1].endswith("; 0 kernels compiled while serving")


def test_what_vllm_takes_without_a_file_is_compiled_by_the_start(autotune):
    tuned(autotune.folder, {1: SMALL, 64: SMALL})
    (autotune.folder / "tuned" / "NVIDIA_H100_SHRINK.json").rename(
        autotune.folder / "tuned" / "NVIDIA_H100_EXPAND_TRUE.json"
    )
    ended = autotune("check", "tuned", "study.toml", "--json")
    # The default is one configuration below 128 tokens; no multiple of 16 but 64 is launched.
    assert json.loads(ended.out)["late_kernels"] == 0


@pytest.mark.slow
def test_warm_compiles_what_a_server_launches_and_again_finds_it(autotune, monkeypatch):
    tuned(autotune.folder, {1: SMALL, 8: SMALL, 64: LARGE})
    cache = autotune.folder / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    flags = ("warm", "tuned", "study.toml", "--kernels", "builtin")

    ended = autotune.in_a_new_process(*flags)

    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == (
        "Compiled for NVIDIA_H100 (sm_90): 5 kernels, of which a server's start does not launch "
        f"2, into {cache}"
    )
    assert lines[1] == f"Start the server with TRITON_CACHE_DIR={cache}"
    kernels = set(cache.rglob("*.cubin"))
    assert len(kernels) == 5
    assert autotune.in_a_new_process(*flags).out == ended.out
    assert set(cache.rglob("*.cubin")) == kernels


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_named_and_fails_the_command(autotune, monkeypatch):
    # A tile of three rows is none that Triton knows.
    tuned(autotune.folder, {1: SMALL, 64: SMALL | {"block_m": 3}})
    monkeypatch.setenv("TRITON_CACHE_DIR", str(autotune.folder / "cache"))
    ended = autotune.in_a_new_process("warm", "tuned", "study.toml", "--kernels", "builtin")
    assert ended.code == 3
    assert ended.out.startswith("did not compile: shrink m=")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("nowhere",), r"there is no folder nowhere"),
        (("tuned", "--gpu-arch", "sm_9"), r"--gpu-arch: unknown architecture: got 'sm_9'; use one"),
        (("tuned",), r"tuned does not say which kernels .* NVIDIA_H100: give --model or --trace"),
    ],
)
def test_what_cannot_be_warmed_is_refused_in_one_line(autotune, flags, message):
    tuned(autotune.folder, {1: SMALL})
    ended = autotune("warm", *flags, "--kernels", "builtin")
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    assert re.search(message, line)


def test_a_gpu_that_is_not_known_needs_an_architecture(autotune):
    tuned(autotune.folder, {1: SMALL}, gpu="NVIDIA_Unheard_Of")
    ended = autotune("warm", "tuned", "study.toml", "--kernels", "builtin")
    assert ended.code == 1
    assert "what to compile for a NVIDIA_Unheard_Of: give --gpu-arch" in ended.err


def test_without_vllm_its_kernels_cannot_be_warmed(autotune):
    tuned(autotune.folder, {1: SMALL})
    ended = autotune("warm", "tuned")
    assert ended.code == 1
    assert "vLLM is not installed here" in ended.err
