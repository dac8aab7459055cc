"""The vLLM that is to serve: which one there is, on which GPUs, and whether it reads a folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.errors import GpuMissing, InputError, KernelsUnusable, printable
from autotune.export.names import prefixes_in
from autotune.launch.op import gpu_file_prefix
from autotune.launch.release import is_since
from autotune.serve.child import program

#: The first release whose monitor of compiles can tell each one, and not only the first of a kind.
_TELLS_EACH = "0.24"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The vLLM that is compared.

    Attributes:
        python: The interpreter that it is installed for.
        release: Its version.
        platform: What it was built for: ``cuda``, or ``cpu``.
        gpu: The GPU's name; empty where there is none.
        gpus: How many there are.
    """

    python: str
    release: str
    platform: str
    gpu: str
    gpus: int

    @property
    def tells_compiles(self) -> list[str]:
        """The flag that has vLLM log every compile, where the release has one."""
        return ["--jit-monitor-verbose"] if is_since(self.release, _TELLS_EACH) else []


def installed_at(python: str | None, scratch: Path) -> Installed:
    """Ask an interpreter which vLLM it has, and which GPUs.

    Args:
        python: The interpreter; None for this one.
        scratch: For its log.

    Raises:
        KernelsUnusable: It has no vLLM, or one that cannot be imported.
        GpuMissing: There is no GPU.
        InputError: It cannot be started.
    """
    python = sys.executable if python is None else python
    name = f"asking {printable(python)} for vLLM"
    with program(python, "engine_program", name=name, log=scratch / "asked.log") as child:
        child.give({"probe": True})
        answer: dict[str, Any] = {}
        for line in child.lines():
            answer |= line.get("installed", {})
    if not answer.get("release"):
        raise KernelsUnusable(
            f"vLLM is not installed for {printable(python)}, and --server runs it: pip install "
            "vllm there, or name the Python that has it with --python"
        )
    found = Installed(python=python, **answer)
    if found.platform != "cpu" and not found.gpus:
        raise GpuMissing(
            f"no CUDA GPU here that vLLM {found.release} could serve with: run this where there "
            "is one"
        )
    return found


def gpus_of(folder: Path) -> list[str]:
    """The GPUs that a folder has files for, by the prefixes of these.

    Raises:
        InputError: There is no such folder, or it has no file that vLLM reads.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {printable(str(folder))}: give the one that autotune run wrote"
        )
    prefixes = prefixes_in(folder)
    if not prefixes:
        raise InputError(
            f"{printable(str(folder))} has no file that vLLM reads: give the folder that autotune "
            "run wrote"
        )
    return prefixes


def check_folder(folder: Path, installed: Installed, *, gpus: int) -> str | None:
    """Refuse a folder that the servers would not read; what is to be said of it, else.

    Args:
        folder: The folder of tuned files.
        installed: What serves.
        gpus: How many GPUs a server needs.

    Raises:
        InputError: As ``gpus_of``, or it is for other GPUs, or there are too few GPUs.
    """
    prefixes = gpus_of(folder)
    if not installed.gpu:
        return (
            f"vLLM {installed.release} is built for CPUs, where it reads no folder: this shows how "
            "far two servers that are alike differ."
        )
    if gpus > installed.gpus:
        raise InputError(f"--tp needs {gpus} GPUs: there are {installed.gpus} here")
    if gpu_file_prefix(installed.gpu) not in prefixes:
        raise InputError(
            f"{printable(str(folder))} is for {', '.join(map(printable, prefixes))}: vLLM would "
            f"read nothing of it on {printable(installed.gpu)}, which is here"
        )
    return None
