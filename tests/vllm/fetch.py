"""Downloads what the tests need of vLLM: ``python -m tests.vllm.fetch``.

A wheel is some hundred megabytes, nearly all of them compiled kernels. The Python files are kept,
and the rest is not: they are enough to import the look-up on a machine without a GPU, and to read
what models are made of.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from tests.vllm.releases import RELEASES, is_here, releases_folder

#: What nothing here imports or reads.
_NOT_NEEDED = ("vllm/third_party/",)


def fetch(version: str) -> None:
    """Download a release and unpack what is needed of it; nothing where that is here already."""
    if is_here(version):
        return
    target = releases_folder() / version
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename makes it appear whole or not at all.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}-") as name:
        wheel = download(version, Path(name))
        unpack(wheel, Path(name) / "unpacked")
        (Path(name) / "unpacked").rename(target)


def download(version: str, folder: Path) -> Path:
    """The release's wheel, from wherever this machine's pip takes packages.

    Raises:
        subprocess.CalledProcessError: It failed twice; pip has said why.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", f"--dest={folder}"]
    command = [*pip, *what, f"vllm=={version}"]
    if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 - pip, our arguments
        subprocess.run(command, check=True)  # noqa: S603 - once more: a connection may break
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack the Python files that are needed, and the metadata that gives vLLM its version."""
    with ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if _is_needed(name)])


def _is_needed(name: str) -> bool:
    if name.endswith(".dist-info/METADATA"):
        return True
    return name.startswith("vllm/") and name.endswith(".py") and not name.startswith(_NOT_NEEDED)


if __name__ == "__main__":
    for version in RELEASES:
        fetch(version)
