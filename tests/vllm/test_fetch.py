"""Fetching releases, without the network: what is unpacked, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.vllm import fetch
from tests.vllm.releases import is_here, releases_folder


def _wheel(folder: Path) -> Path:
    path = folder / "vllm-9.9.9-cp38-abi3-manylinux1_x86_64.whl"
    with ZipFile(path, "w") as archive:
        for name in (
            "vllm/__init__.py",
            "vllm/lora/ops/triton_ops/utils.py",
            "vllm/_C.abi3.so",
            "vllm/model_executor/layers/batch_invariant.py",
            "vllm/model_executor/models/llama.py",
            "vllm/models/llama.py",
            "vllm/third_party/pynvml.py",
            "vllm-9.9.9.dist-info/METADATA",
            "vllm-9.9.9.dist-info/RECORD",
        ):
            archive.writestr(name, "")
    return path


def test_only_python_that_the_tests_need_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_VLLM_RELEASES", str(tmp_path / "releases"))
    monkeypatch.setattr(fetch, "download", lambda _, folder: _wheel(folder))
    fetch.fetch("9.9.9")

    assert is_here("9.9.9")
    unpacked = {path for path in releases_folder().rglob("*") if path.is_file()}
    assert {str(path.relative_to(releases_folder() / "9.9.9")) for path in unpacked} == {
        "vllm/__init__.py",
        "vllm/lora/ops/triton_ops/utils.py",
        "vllm/model_executor/layers/batch_invariant.py",
        "vllm/model_executor/models/llama.py",
        "vllm/models/llama.py",
        "vllm-9.9.9.dist-info/METADATA",
    }
    assert [path.name for path in releases_folder().iterdir()] == ["9.9.9"]


def test_a_release_that_is_here_is_not_downloaded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_VLLM_RELEASES", str(tmp_path))
    (tmp_path / "9.9.9" / "vllm").mkdir(parents=True)
    monkeypatch.delattr(fetch, "download")
    fetch.fetch("9.9.9")


def test_a_download_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_, folder):
        (folder / "half.whl").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setenv("AUTOTUNE_VLLM_RELEASES", str(tmp_path))
    monkeypatch.setattr(fetch, "download", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        fetch.fetch("9.9.9")
    assert list(tmp_path.iterdir()) == []
