"""Files that a folder lacks, and entries or whole files that vLLM does not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from autotune.export.check.entries import Examined
from autotune.export.check.findings import Finding
from autotune.launch.op import MOE_OPS, LoraOp, gpu_file_prefix
from autotune.launch.release import SERVER_FLAGS, is_since, one_shot_rank
from autotune.launch.shape import KernelShape


def missing_files(
    asked: Mapping[str, Sequence[KernelShape]],
    read: Mapping[str, Examined],
    environ: Mapping[str, str],
    release: str,
) -> Iterator[Finding]:
    """Files that vLLM may open and that are not there, though others of the same GPU are."""
    wanted = {shape.file_name(gpu) for gpu, shapes in asked.items() for shape in shapes}
    prefixes = dict.fromkeys(each.file.prefix for each in read.values())
    has_own_streams = is_since(release, SERVER_FLAGS["dual_stream"].since)
    for gpu, shapes in asked.items():
        if not shapes and gpu_file_prefix(gpu) not in prefixes:
            yield Finding(
                severity="warning",
                kind="no_file",
                message=f"there is no file that vLLM can use for {gpu}: it takes its defaults "
                "there; tune on that GPU",
            )
    for prefix in prefixes:
        here = {each.file.op for each in read.values() if each.file.prefix == prefix}
        for suffix, when in zip(LoraOp.EXPAND.file_suffixes, _when_opened(environ), strict=True):
            name = f"{prefix}{suffix}"
            is_opened = not suffix.endswith("FALSE.json") or has_own_streams
            if is_opened and not here <= set(MOE_OPS) and name not in {*read, *wanted}:
                yield Finding(
                    severity="warning",
                    kind="expand_file_missing",
                    file=name,
                    message=f"is not there: vLLM opens it {when}, and then takes its default",
                )
        lacking = [op for op in MOE_OPS if op not in here]
        if lacking:
            yield _moe_files_missing(prefix, lacking)


def _moe_files_missing(prefix: str, lacking: Sequence[LoraOp]) -> Finding:
    if len(lacking) == len(MOE_OPS):
        start = "its MoE files are not there: nothing to do for a dense model; for a MoE model"
    else:
        names = ", ".join(f"*{op.file_suffixes[0]}" for op in lacking)
        start = f"{names} not there; give all four MoE files or none:"
    return Finding(
        severity="warning",
        kind="moe_files_missing",
        message=f"{prefix}: {start} vLLM takes a static default for them, not the base layer's "
        "tuned config",
    )


def _when_opened(environ: Mapping[str, str]) -> tuple[str, str]:
    """When vLLM opens each ``expand`` file: the one that adds to the output, and the other."""
    if _is_set(environ, "VLLM_LORA_ENABLE_DUAL_STREAM"):
        return (
            "without VLLM_LORA_ENABLE_DUAL_STREAM only",
            "since VLLM_LORA_ENABLE_DUAL_STREAM is set",
        )
    return "in normal serving", "with VLLM_LORA_ENABLE_DUAL_STREAM only"


def bypassed(read: Iterable[Examined], release: str) -> Iterator[Finding]:
    """MoE entries from which a release reads only ``block_m``."""
    largest = one_shot_rank(release)
    for each in read:
        ranks = {entry.key.k for entry in each.entries} if each.file.op.is_moe else set()
        small = sorted(rank for rank in ranks if rank <= largest)
        if small:
            yield Finding(
                severity="warning",
                kind="bypassed",
                file=each.file.name,
                message=f"vLLM {release} reads only block_m of the entries of rank "
                f"{', '.join(map(str, small))}: up to rank {largest} it runs another MoE "
                "kernel, unless LoRAs are fully sharded",
            )


def switched_off(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether vLLM would read no tuned file at all."""
    if _is_set(environ, "VLLM_BATCH_INVARIANT"):
        yield Finding(
            severity="warning",
            kind="batch_invariant",
            message="VLLM_BATCH_INVARIANT is set here: with it vLLM reads no tuned file for any "
            "op; unset it where vLLM runs",
        )


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "0").strip().lower() not in ("", "0", "false")
