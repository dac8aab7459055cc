"""What makes a server's outputs differ from run to run: entries and defaults that split k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from autotune.errors import shown
from autotune.export.check.entries import Examined
from autotune.export.check.findings import Finding, LookedUp
from autotune.export.mixture import splits
from autotune.launch.op import LoraOp, MoeKey, key_text
from autotune.launch.release import one_shot_rank, reads_only_block_m
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.defaults import default_config

#: The kind of these findings.
SPLITS = "splits_k"

_ADVICE = "the same input may give other bits; tune with --deterministic"


def splitting_findings(
    asked: Mapping[str, Sequence[KernelShape]],
    read: Mapping[str, Examined],
    lookups: Iterable[LookedUp],
    release: str,
) -> Iterator[Finding]:
    """Every entry that splits k, and every file for want of which vLLM's default does.

    Args:
        asked: Per GPU its shapes.
        read: By name, the files that could be read.
        lookups: What vLLM finds for the shapes.
        release: The vLLM release that reads the folder.
    """
    lookups = list(lookups)
    sharded = {
        (one.file, one.path)
        for one in lookups
        if one.path is not None and not reads_only_block_m(one.shape, release)
    }
    for each in read.values():
        for entry in each.entries:
            if splits(each.file.op, entry.values):
                split_k = shown(each.file.op.values_in(entry.values)["split_k"])
                key = entry.key
                is_read = not _is_read_if_sharded(key, release) or (each.file.name, key) in sharded
                where = "" if is_read else ", where LoRAs are fully sharded: else vLLM skips it"
                yield Finding(
                    severity="error" if is_read else "warning",
                    kind=SPLITS,
                    file=each.file.name,
                    key=key_text(entry.keys),
                    message=f"split_k {split_k}{where}; {_ADVICE}",
                )
    yield from _defaults(lookups)
    for gpu, shapes in asked.items():
        name = LoraOp.SHRINK.file_name(gpu, add_inputs=True)
        if not shapes and name not in read:
            yield Finding(
                severity="warning",
                kind=SPLITS,
                file=name,
                message=f"is not there: for dense layers vLLM takes its default, which splits k; "
                f"{_ADVICE}",
            )


def _is_read_if_sharded(key: object, release: str) -> bool:
    """Whether vLLM reads ``split_k`` of an entry only where LoRAs are fully sharded."""
    return isinstance(key, MoeKey) and key.k <= one_shot_rank(release)


def _defaults(lookups: Iterable[LookedUp]) -> Iterator[Finding]:
    """The files for want of which vLLM takes a default that splits k."""
    counts = Counter(
        one.file
        for one in lookups
        if one.outcome == "default" and default_config(one.shape).splits_k
    )
    for name, count in counts.items():
        yield Finding(
            severity="error",
            kind=SPLITS,
            file=name,
            message=f"holds nothing for {count} of the shapes asked for: vLLM takes its default, "
            f"which splits k; {_ADVICE}",
        )
