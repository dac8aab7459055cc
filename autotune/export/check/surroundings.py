"""Checking a folder for the GPU, the vLLM and the environment variables that are here."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from autotune.export.check.examine import KINDS_OF_CHOICE, check_folder
from autotune.export.check.findings import Report
from autotune.export.check.splitting import SPLITS
from autotune.export.names import prefixes_in, provenance_prefixes
from autotune.export.provenance import provenance_in, read_environment
from autotune.launch.environment import Device
from autotune.launch.release import NEWEST_RELEASE
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.measure.cuda.gpu import describe_device, has_gpu

#: Per GPU the kernels of a server with their batch sizes; for the GPU None as for what is asked.
_Served = Mapping[str | None, Mapping[KernelShape, WarmedSizes]]


def check(
    folder: Path,
    asked: Mapping[str | None, Sequence[KernelShape]],
    served: _Served = MappingProxyType({}),
    *,
    deterministic: bool = False,
    release: str | None = None,
) -> Report:
    """Check a folder.

    Args:
        folder: The folder that ``VLLM_TUNED_CONFIG_FOLDER`` would name.
        asked: The shapes to look up for each GPU. If it names no GPU, or only None, the check is
            for the GPU that is here, else for those that the folder's provenance names, else for
            those that its files name.
        served: For each GPU the kernels of a server, of which it is counted how many it compiles
            while it serves.
        deterministic: Whether what splits k is an error.
        release: The vLLM release that reads the folder; None for what ``vllm_release`` says.

    Raises:
        InputError: There is no such folder, or it holds no tuned file.
    """
    device = device_here()
    named = {gpu: shapes for gpu, shapes in asked.items() if gpu is not None}
    gpus = list(named or _gpus(folder, device))
    return check_folder(
        folder,
        asked=named or dict.fromkeys(gpus, asked.get(None, ())),
        served={gpu: kernels for gpu in gpus if (kernels := served.get(gpu) or served.get(None))},
        device=device,
        release=release or vllm_release(folder),
        environ=os.environ,
        deterministic=deterministic,
    )


def check_exported(
    folder: Path,
    by_gpu: Mapping[str | None, Sequence[KernelShape]],
    *,
    deterministic: bool = False,
    release: str | None = None,
) -> Report:
    """Check what was just written.

    Findings about what else the folder holds or lacks are left out: the user chose that. But it is
    told, as a warning, what splits k beside deterministic entries.

    Args:
        folder: The folder.
        by_gpu: The shapes that were exported for each GPU.
        deterministic: Whether what was written never splits k.
        release: As for ``check``.

    Raises:
        InputError: There is no such folder, or it holds no tuned file.
    """
    report = check(folder, by_gpu, deterministic=deterministic, release=release)
    kept = tuple(
        replace(each, severity="warning") if each.kind == SPLITS else each
        for each in report.findings
        if each.kind not in KINDS_OF_CHOICE
    )
    return replace(report, findings=kept)


def _gpus(folder: Path, device: Device | None) -> list[str]:
    if device is not None:
        return [device.name]
    return provenance_prefixes(folder) or prefixes_in(folder)


def device_here() -> Device | None:
    """The GPU of this machine; None where there is none."""
    return describe_device() if has_gpu() else None


def vllm_release(folder: Path) -> str:
    """The installed vLLM's version, else that of the folder's kernels, else the newest known."""
    try:
        return importlib.metadata.version("vllm")  # without the minute that importing it takes
    except importlib.metadata.PackageNotFoundError:
        prefixes = provenance_prefixes(folder)
        environments = [read_environment(provenance_in(folder, each)) for each in prefixes]
        versions = [
            each.provider_version for each in environments if each and each.provider == "vllm"
        ]
        return versions[0] if versions else NEWEST_RELEASE
