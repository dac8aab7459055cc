"""``autotune bench``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from typer.testing import CliRunner

from autotune.cli.commands import app
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.plan.study import StudyPlan
from tests.export.test_bench import FAKE_DEFAULT, STUDY, exported
from tests.measure.cuda.handlers import FakeDevice

HAS_GPU = torch.cuda.is_available()


@pytest.mark.skipif(HAS_GPU, reason="a CUDA device is here: bench would measure on it")
def test_without_a_gpu_bench_ends_in_one_line(autotune):
    assert "no CUDA GPU here" in autotune("bench", "tuned").has_failed_in_one_line()


def test_a_bench_of_no_folder_is_refused(autotune):
    assert "Missing argument" in autotune("bench").has_refused_its_usage()


@pytest.fixture
def on_a_fake_device(tmp_path, monkeypatch):
    """Runs ``autotune bench`` on the fake device, in a folder with a study and its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "expand.toml").write_text(STUDY.replace("shrink", "expand"))

    def fake_gpu(kernels: str, _say: Callable[[str], None]) -> CudaRunner:
        assert kernels == "auto"
        return CudaRunner(Processes("builtin", compile_workers=1, device_server=FakeDevice))

    monkeypatch.setattr("autotune.measure.runners.gpu_runner", fake_gpu)

    def run(*arguments: str, study: str = "study.toml", **changes: int):
        shapes = StudyPlan.read(tmp_path / "study.toml").shapes
        with fake_gpu("auto", print) as runner:
            exported(tmp_path / "tuned", runner, *[(s, FAKE_DEFAULT | changes) for s in shapes])
        return CliRunner().invoke(app, ["bench", "tuned", study, *arguments])

    return run


@pytest.mark.slow
def test_the_table_has_a_row_for_every_shape_and_a_line_of_counts(on_a_fake_device):
    ended = on_a_fake_device(block_k=32)
    assert ended.exit_code == 0, ended.output
    header, *rows, counts = [line for line in ended.stdout.splitlines() if line]
    assert header.split()[:4] == ["op", "layer", "sizes", "tokens"]
    assert [" ".join(row.split()) for row in rows] == [
        "shrink qkv 4096>16 x3 1 64.00 32.00 2.00x [2.00, 2.00] faster 1% -> 1%",
        "shrink qkv 4096>16 x3 4 (as 1) 64.00 32.00 2.00x [2.00, 2.00] faster 3% -> 5%",
        "shrink qkv 4096>16 x3 16 64.00 32.00 2.00x [2.00, 2.00] faster 5% -> 10%",
    ]
    assert counts == "3 faster, 0 same, 0 slower"
    assert "[3/3] shrink" in ended.stderr


@pytest.mark.slow
def test_an_entry_that_is_slower_than_the_default_ends_with_exit_code_3(on_a_fake_device):
    ended = on_a_fake_device("--tokens", "16", "--json", block_k=128)
    assert ended.exit_code == 3, ended.output
    (row,) = json.loads(ended.stdout)
    assert (row["num_tokens"], row["key"]) == (16, [9, 3, 16, 4096, 16])
    assert (row["verdict"], row["is_between"]) == ("slower", False)
    assert row["ratio"] == pytest.approx(0.5)


def test_a_file_that_is_missing_ends_in_one_line(on_a_fake_device):
    ended = on_a_fake_device(study="expand.toml")
    assert (ended.exit_code, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("autotune: tuned/NVIDIA_Test_GPU_EXPAND_TRUE.json is not there")
