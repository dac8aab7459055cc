"""Compiles what a server launches with a folder into Triton's cache, before the server starts.

It needs no GPU: the kernels are compiled as a run compiles them ahead of the process that launches
them, so that Triton finds them under the same key (``tests/vllm/test_provider.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import InputError
from autotune.export.check.examine import read_folder
from autotune.export.check.limits import target_of, target_of_arch
from autotune.export.check.surroundings import device_here, vllm_release
from autotune.export.names import prefixes_in, provenance_prefixes
from autotune.export.provenance import provenance_in, read_entries
from autotune.export.served_folder import served_kernels
from autotune.launch.environment import Target
from autotune.launch.late import Compiled, Launch
from autotune.launch.release import is_since
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.measure.cuda.compiler import CompileFailure, CompileJob, CompilePool
from autotune.plan.batches import MAX_NUM_BATCHED_TOKENS

#: The first release that leaves Triton's cache where TRITON_CACHE_DIR says: 0.30 puts it into its
#: own compile cache (``vllm/compilation/compiler_interface.py``).
_KEEPS_CACHE = "0.31"

#: Every kernel of a server, ``without_batch``, with its batch sizes.
Served = Mapping[KernelShape, WarmedSizes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What was compiled.

    Attributes:
        gpus: The GPUs, each with what its kernels were compiled for.
        compiled: How many kernels are in the cache now.
        failed: The launches whose kernel did not compile, each with the reason.
        late: How many of ``compiled`` a server's start does not launch.
        cache: Triton's cache.
        release: vLLM's version.
    """

    gpus: Mapping[str, Target]
    compiled: int
    failed: Sequence[tuple[Launch, str]]
    late: int
    cache: Path
    release: str

    @property
    def is_whole(self) -> bool:
        """Whether everything compiled."""
        return not self.failed

    @property
    def lines(self) -> list[str]:
        """What the user is told, a line each."""
        lines = [
            f"did not compile: {shape.op.value} {shape.label}: {reason}"
            for (shape, _), reason in self.failed
        ]
        names = ", ".join(f"{gpu} ({_arch(target)})" for gpu, target in self.gpus.items())
        lines.append(
            f"Compiled for {names}: {self.compiled} kernels, of which a server's start does not "
            f"launch {self.late}, into {self.cache}"
        )
        if is_since(self.release, _KEEPS_CACHE):
            lines.append(f"Start the server with TRITON_CACHE_DIR={self.cache}")
        else:
            lines.append(
                f"vLLM {self.release} keeps Triton's cache in its compile cache, whatever "
                "TRITON_CACHE_DIR says: start it with VLLM_DISABLE_COMPILE_CACHE=1 and "
                f"TRITON_CACHE_DIR={self.cache}, or warm the folder triton_cache there"
            )
        return lines


def warm(
    folder: Path,
    served: Mapping[str | None, Served],
    *,
    kernels: str,
    arch: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _count: None,
) -> Warmed:
    """Compile every kernel that a server launches with a folder.

    Args:
        folder: The folder that ``VLLM_TUNED_CONFIG_FOLDER`` names.
        served: Per GPU the kernels of the server; for the GPU that is here, else for those of the
            folder, if the GPU is None. If there are none, the kernels of the folder's provenance.
        kernels: Name of the kernel provider.
        arch: What to compile for, such as ``sm_90``; as the GPU is known to be if not given.
        workers: How many processes compile; one per core by default.
        progress: Called with how many kernels are done, and their number.

    Raises:
        InputError: The folder holds no tuned file, or it is not known for which GPU or which
            kernels to compile.
        AutotuneError: The kernels cannot be compiled here.
    """
    release = vllm_release(folder)
    device = device_here()
    named = {gpu: each for gpu, each in served.items() if gpu is not None}
    gpus = list(named) or ([device.name] if device else gpus_of(folder))
    read = read_folder(folder, gpus, device, release)
    targets = {gpu: _target(gpu, arch) for gpu in gpus}
    if device is not None and arch is None:
        targets |= {gpu: device.target for gpu in gpus if gpu == device.name}
    all_of: dict[CompileJob, bool] = {}
    for gpu, target in targets.items():
        given = served.get(gpu) or served.get(None) or _of_provenance(folder, gpu)
        compiled = Compiled.of(
            list(served_kernels(gpu, given, read)), release=release, target=target
        )
        all_of |= {CompileJob(*each, target): False for each in compiled.warmed.values()}
        all_of |= {CompileJob(*each, target): True for each in compiled.late.values()}
    failed = _compile(list(all_of), kernels, workers or os.cpu_count() or 1, progress)
    return Warmed(
        gpus=targets,
        compiled=len(all_of) - len(failed),
        failed=[((job.shape, job.config), why) for job, why in failed.items()],
        late=sum(is_late for job, is_late in all_of.items() if job not in failed),
        cache=cache_folder(),
        release=release,
    )


def cache_folder() -> Path:
    """Where Triton keeps compiled kernels (``knobs.cache`` in ``triton/knobs.py``)."""
    given = os.environ.get("TRITON_CACHE_DIR")
    home = os.environ.get("TRITON_HOME") or "~"
    return Path(given) if given else Path(home).expanduser() / ".triton" / "cache"


def gpus_of(folder: Path) -> list[str]:
    """The GPUs that a folder is for, each by its part of the files' names."""
    return provenance_prefixes(folder) or prefixes_in(folder)


def _target(gpu: str, arch: str | None) -> Target:
    """What a GPU's kernels are compiled for.

    Raises:
        InputError: The GPU is not known, and nothing else is given; or what is given is none.
    """
    target = target_of(gpu)
    if arch is not None:
        return target_of_arch(arch, target)
    if target is None:
        raise InputError(f"it is not known what to compile for a {gpu}: give --gpu-arch, as sm_90")
    return target


def _arch(target: Target) -> str:
    major, minor = target.capability
    return f"sm_{major}{minor}"


def _of_provenance(folder: Path, gpu: str) -> Served:
    """The kernels that a folder was tuned for, at any batch size.

    Raises:
        InputError: The folder does not say them.
    """
    rows: dict[KernelShape, set[int]] = {}
    for entries in read_entries(provenance_in(folder, gpu)).values():
        for entry in entries.values():
            shape = KernelShape.from_mapping(entry.get("shape", {}))
            rows.setdefault(shape.without_batch, set()).add(shape.num_tokens)
    if not rows:
        raise InputError(
            f"{folder} does not say which kernels it was tuned for on a {gpu}: give --model or "
            "--trace"
        )
    return {
        kind: WarmedSizes(
            tuple(sorted(counts)), (range(1, max(MAX_NUM_BATCHED_TOKENS, *counts) + 1),)
        )
        for kind, counts in rows.items()
    }


def _compile(
    jobs: Sequence[CompileJob],
    kernels: str,
    workers: int,
    progress: Callable[[int, int], None],
) -> dict[CompileJob, str]:
    """Compile jobs side by side; returns the reasons of those that failed."""
    failed, left = {}, dict.fromkeys(jobs)
    pool = CompilePool(kernels, workers=max(1, min(workers, len(jobs))))
    with closing(pool.queue()) as queue:
        while left:
            job, result = queue.first_done(list(left))
            del left[job]
            if isinstance(result, CompileFailure):
                failed[job] = result.reason
            progress(len(jobs) - len(left), len(jobs))
    return failed
