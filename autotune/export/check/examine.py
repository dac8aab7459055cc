"""Checking a folder of tuned files against what vLLM does with it.

It reads the folder and nothing else. The caller gives the GPU, vLLM's release and the environment
variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from autotune.errors import ExportError, InputError, printable
from autotune.export.check.agreement import MoeFile, coupling_findings, layer_findings
from autotune.export.check.asked import look_up_all, unmatched
from autotune.export.check.entries import (
    Entry,
    Examined,
    TunedFile,
    entry_findings,
    read_content,
    walk,
)
from autotune.export.check.findings import Finding, LookedUp, Report
from autotune.export.check.folder import bypassed, missing_files, switched_off
from autotune.export.check.limits import Limits, limits_of, target_of
from autotune.export.check.splitting import splitting_findings
from autotune.export.names import (
    is_base_moe,
    links_to_nothing,
    names_in,
    parse_name,
    provenance_prefixes,
    unread_reason,
)
from autotune.export.provenance import provenance_in, read_entries
from autotune.export.served_folder import served_kernels
from autotune.launch.environment import Device
from autotune.launch.late import Compiled
from autotune.launch.op import LoraOp, gpu_file_prefix
from autotune.launch.rules import WASTE_RULES
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes

#: Per GPU the kernels of a server, ``without_batch``, each with its batch sizes.
Served = Mapping[str, Mapping[KernelShape, WarmedSizes]]

#: Kinds of findings about what a folder lacks or also holds, or about the GPU. Whoever has just
#: exported has chosen that: models may share a folder, and so may GPUs, and what was measured ran.
KINDS_OF_CHOICE = frozenset(
    {
        *("expand_file_missing", "moe_files_missing", "matches_no_layer", "other_gpu"),
        *("bypassed", "limits_unknown", *WASTE_RULES),
    }
)


def check_folder(  # noqa: PLR0913 - each by its name
    folder: Path,
    *,
    asked: Mapping[str, Sequence[KernelShape]],
    device: Device | None,
    release: str,
    environ: Mapping[str, str],
    served: Served = MappingProxyType({}),
    deterministic: bool = False,
) -> Report:
    """Check a folder.

    Args:
        folder: The folder that ``VLLM_TUNED_CONFIG_FOLDER`` would name.
        asked: The shapes to look up for each GPU that the folder is for; no shapes where only the
            files are to be checked. A GPU is named as ``torch.cuda.get_device_name()`` does, or by
            its part of the files' names.
        device: The GPU that is here; None where there is none.
        release: The vLLM release to check for, such as ``0.33.0``.
        environ: The environment variables that vLLM would be started with.
        served: Per GPU the kernels of a server, with the batch sizes that it launches them at.
        deterministic: Whether what splits k is an error.

    Raises:
        InputError: There is no such folder, or no file in it looks like a tuned one.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    named = list(_name_findings(folder, asked))
    files, broken = _read_all(folder, asked)
    if not files and not broken and not named:
        raise _holds_none(folder)
    read = {file.name: _examined(file, device, release) for file in files}
    lookups, looked = look_up_all(asked, read, {finding.file for finding in broken})
    coupled = list(_coupled(read.values(), broken))
    compiled = [_compiled(gpu, kernels, read, device, release) for gpu, kernels in served.items()]
    findings = [
        *named,
        *broken,
        *_unread_provenance(folder),
        *(finding for each in read.values() for finding in each.findings),
        *coupled,
        *_layers(lookups, told={finding.place for finding in coupled}),
        *looked,
        *unmatched(asked, read.values()),
        *_unknown_limits(read.values(), device),
        *missing_files(asked, read, environ, release),
        *bypassed(read.values(), release),
        *switched_off(environ),
        *(_late_finding(each) for each in compiled if each.late),
        *(splitting_findings(asked, read, lookups, release) if deterministic else ()),
    ]
    unique = sorted(dict.fromkeys(findings), key=lambda finding: not finding.is_error)
    return Report(
        folder=str(folder),
        release=release,
        findings=tuple(unique),
        lookups=tuple(lookups),
        late=sum(len(each.late) for each in compiled) if compiled else None,
    )


def read_folder(
    folder: Path, gpus: Iterable[str], device: Device | None, release: str
) -> dict[str, Examined]:
    """The tuned files of a folder that can be read, by name.

    Args:
        folder: The folder.
        gpus: The GPUs that it is for.
        device: The GPU that is here; None where there is none.
        release: The vLLM release that reads it.

    Raises:
        InputError: There is no such folder, or no file in it can be read.
    """
    if not folder.is_dir():
        raise _no_folder(folder)
    files, broken = _read_all(folder, gpus)
    if not files and broken:
        raise InputError(f"{printable(str(folder))}: {broken[0]}")
    if not files:
        raise _holds_none(folder)
    return {file.name: _examined(file, device, release) for file in files}


def _no_folder(folder: Path) -> InputError:
    return InputError(f"there is no folder {folder}: give the one that autotune run wrote")


def _compiled(
    gpu: str,
    kernels: Mapping[KernelShape, WarmedSizes],
    read: Mapping[str, Examined],
    device: Device | None,
    release: str,
) -> Compiled:
    """What a server compiles with the folder."""
    is_here = device is not None and gpu_file_prefix(device.name) == gpu_file_prefix(gpu)
    target = device.target if device is not None and is_here else target_of(gpu)
    return Compiled.of(list(served_kernels(gpu, kernels, read)), release=release, target=target)


def _late_finding(compiled: Compiled) -> Finding:
    return Finding(
        severity="warning",
        kind="late_compile",
        message=f"a server compiles {len(compiled.late)} kernels while it serves, which its start "
        f"does not launch: {compiled.late_text()}; tune with --tokens auto for these limits of the "
        "server, or compile them beforehand with autotune warm",
    )


def _holds_none(folder: Path) -> InputError:
    """The error for a folder without a tuned file."""
    base = [name for name in names_in(folder) if is_base_moe(name)]
    if base:
        return InputError(
            f"{printable(str(folder))} holds no tuned file for LoRA: vLLM reads {base[0]} and the "
            "like for the base MoE layers, and takes its defaults for the LoRA kernels; tune them "
            "with autotune run"
        )
    return InputError(
        f"{printable(str(folder))} holds no tuned file: give the folder that autotune run wrote"
    )


# ------------------------------------------------------------------ the files


def _name_findings(folder: Path, gpus: Iterable[str]) -> Iterator[Finding]:
    known = {gpu_file_prefix(gpu) for gpu in gpus} | set(provenance_prefixes(folder))
    for text in names_in(folder):
        name, reason = parse_name(text), unread_reason(text)
        if reason:
            yield Finding(severity="error", kind="file_name", file=text, message=reason)
        elif name and name.prefix not in known:
            yield Finding(
                severity="error",
                kind="other_gpu",
                file=text,
                message=f"this GPU's files begin with {' or '.join(sorted(known))}: vLLM would "
                "never read this one; rename it if it was tuned there, or move it away",
            )

    for text in links_to_nothing(folder):
        if parse_name(text):
            yield Finding(
                severity="error",
                kind="link_to_nothing",
                file=text,
                message="it is a link to nothing: vLLM would take its default; restore the file "
                "that it led to, or take the link out",
            )


def _unread_provenance(folder: Path) -> Iterator[Finding]:
    """The provenance files that cannot be read: vLLM has no use for them, but autotune has."""
    for prefix in provenance_prefixes(folder):
        path = provenance_in(folder, prefix)
        try:
            read_entries(path)
        except ExportError as error:
            yield Finding(
                severity="warning",
                kind="provenance_unread",
                file=path.name,
                message=f"where the entries come from is not known, and autotune run can add none: "
                f"{error}",
            )


def _unknown_limits(read: Iterable[Examined], device: Device | None) -> Iterator[Finding]:
    """The GPUs for which it was not checked that their shared memory is enough."""
    for prefix in dict.fromkeys(each.file.prefix for each in read):
        if _limits(prefix, device) is None:
            yield Finding(
                severity="warning",
                kind="limits_unknown",
                message=f"{prefix}: the limits of this GPU are not known here, so that it was not "
                "checked whether its shared memory is enough; check the folder on that GPU, too",
            )


def _read_all(folder: Path, gpus: Iterable[str]) -> tuple[list[TunedFile], list[Finding]]:
    """Every tuned file, and what is wrong with those that cannot be read.

    A GPU with a ``/`` in its name has its files in a deeper folder; they come first.
    """
    of_gpus = [
        f"{gpu_file_prefix(gpu)}{suffix}"
        for gpu in gpus
        for op in LoraOp
        for suffix in op.file_suffixes
        if Path(f"{folder}/{gpu_file_prefix(gpu)}{suffix}").is_file()
    ]
    files, broken = [], []
    for name in filter(None, map(parse_name, dict.fromkeys([*of_gpus, *names_in(folder)]))):
        content = read_content(folder, name.text)
        if isinstance(content, Finding):
            broken.append(content)
        else:
            files.append(TunedFile(name.text, name.prefix, name.op, content))
    return files, broken


def _examined(file: TunedFile, device: Device | None, release: str) -> Examined:
    limits = _limits(file.prefix, device)
    walked = list(walk(file))
    entries = tuple(each for each in walked if isinstance(each, Entry))
    of_keys = [each for each in walked if isinstance(each, Finding)]
    of_entries = [
        finding
        for each in entries
        for finding in entry_findings(file, each, limits=limits, release=release)
    ]
    return Examined(file, entries, (*of_keys, *of_entries))


def _limits(prefix: str, device: Device | None) -> Limits | None:
    if device is not None and gpu_file_prefix(device.name) == prefix:
        return Limits(device.capability, device.shared_memory_bytes)
    return limits_of(prefix)


# ------------------------------------------------------------------ block_m


def _coupled(read: Iterable[Examined], broken: Iterable[Finding]) -> Iterator[Finding]:
    """Where a GPU's MoE files disagree; a GPU with a file that cannot be read is left out."""
    by_gpu: dict[str, dict[LoraOp, MoeFile]] = {}
    for each in read:
        if each.file.op.is_moe:
            file = MoeFile.of(each.file, each.entries)
            by_gpu.setdefault(each.file.prefix, {})[each.file.op] = file
    unreadable = {name.prefix for name in (parse_name(one.file) for one in broken) if name}
    for prefix, files in by_gpu.items():
        if prefix not in unreadable:
            yield from coupling_findings(prefix, files)


def _layers(lookups: Iterable[LookedUp], told: set[str]) -> Iterator[Finding]:
    """Where the ops of a layer that was asked for disagree, for one GPU at a time."""
    by_gpu: dict[str, list[LookedUp]] = {}
    for lookup in lookups:
        by_gpu.setdefault(lookup.gpu, []).append(lookup)
    for of_gpu in by_gpu.values():
        yield from layer_findings(of_gpu, told)
