"""The coupling of the four MoE files: within one launch they must give one ``block_m``.

vLLM sorts and pads the tokens for w13's shrink, in steps of its ``block_m``, and reuses that for
the three kernels that follow (``vllm/lora/ops/triton_ops/fused_moe_lora_op.py``, 0.33.0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

from autotune.errors import EntryMissing
from autotune.export.check.entries import Entry, TunedFile
from autotune.export.check.findings import Finding, LookedUp
from autotune.export.lookup import look_up
from autotune.launch.moe_layer import by_layer, names_of
from autotune.launch.op import MOE_DEFAULTS, LoraOp

_ASSERT = "vLLM would stop at an assert"
_SILENT = "vLLM would compute wrong numbers and say nothing"

#: Which two ops are compared, and what vLLM does where they differ.
_PAIRS = (
    (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND, _ASSERT),
    (LoraOp.W2_SHRINK, LoraOp.W2_EXPAND, _ASSERT),
    (LoraOp.W13_SHRINK, LoraOp.W2_SHRINK, _SILENT),
)

_NUM_SLICES_LEVEL = 1


def coupling_findings(
    prefix: str, files: Mapping[LoraOp, tuple[TunedFile, Sequence[Entry]]]
) -> Iterator[Finding]:
    """Every pair of MoE entries that vLLM takes for one launch and whose ``block_m`` differ.

    A file that is not there is compared too: vLLM takes its default, of ``block_m`` 64, then.

    Args:
        prefix: The GPU's part of the files' names.
        files: The GPU's MoE files that can be looked up in, each with its entries.
    """
    for first, second, then in _PAIRS:
        asked = [(op, entry) for op in (first, second) if op in files for entry in files[op][1]]
        seen = set()
        for op, entry in asked:
            other = second if op is first else first
            if (place := _launch(entry.path, same_slices=then is _ASSERT)) in seen:
                continue
            finding = _compared(prefix, files, (op, other), entry, then)
            if finding:
                seen.add(place)
                yield finding


def taken_for_others(
    files: Mapping[LoraOp, tuple[TunedFile, Sequence[Entry]]],
    op: LoraOp,
    path: tuple[int, ...],
    others: Collection[LoraOp],
) -> Iterator[tuple[LoraOp, object, str]]:
    """Every ``block_m`` that vLLM takes for other ops in the launch of an op's path.

    Args:
        files: As for ``coupling_findings``.
        op: The op whose path it is.
        path: The keys under which vLLM looks up that op's entry.
        others: The ops to ask for; those that are not compared with ``op`` itself are passed over.

    Yields:
        The other op, the ``block_m``, and where it comes from, to be read after the file's name.
    """
    for first, second, then in _PAIRS:
        other = second if op is first else first
        if op in (first, second) and other in others:
            for value, place in _others(files, (op, other), path, same_slices=then is _ASSERT):
                yield other, value, place


def layer_findings(lookups: Iterable[LookedUp], told: Set[str]) -> Iterator[Finding]:
    """MoE layers whose ops vLLM launches with more than one ``block_m``.

    Shapes say what the files alone do not: which w13 and w2 are of one layer where a model fuses
    gate and up, and so looks them up under two intermediate sizes.

    Args:
        lookups: What vLLM finds for every shape of one GPU.
        told: Places that were told of by ``coupling_findings``.
    """
    for layer, those in by_layer(lookups, lambda one: one.shape).items():
        taken = [(one, _taken_block_m(one)) for one in those if one.outcome != "stops"]
        known = [(one, block_m) for one, block_m in taken if block_m is not None]
        if len({str(block_m) for _, block_m in known}) > 1 and not told & {
            _place(one) for one, _ in known
        }:
            first, _ = known[0]
            found = ", ".join(f"{block_m} for {names_of([one.shape.op])}" for one, block_m in known)
            yield Finding(
                severity="error",
                kind="moe_block_m",
                file=first.file,
                key="/".join(map(str, first.path or first.shape.lookup_key)),
                message=f"vLLM takes block_m {found} in the MoE layer {layer.label}: "
                f"{_SILENT}, or stop; give all four MoE files one block_m",
            )


def _taken_block_m(lookup: LookedUp) -> object:
    if lookup.outcome == "default":
        return MOE_DEFAULTS["block_m"]
    return _block_m(lookup.shape.op, lookup.entry)


def _place(lookup: LookedUp) -> str:
    return f"{lookup.file} at {'/'.join(map(str, lookup.path or ()))}"


def _launch(path: tuple[int, ...], *, same_slices: bool) -> tuple[int, ...]:
    """What tells one launch from another: w13 and w2 differ in their slices."""
    level = _NUM_SLICES_LEVEL
    return path if same_slices else (*path[:level], *path[level + 1 :])


def _compared(
    prefix: str,
    files: Mapping[LoraOp, tuple[TunedFile, Sequence[Entry]]],
    ops: tuple[LoraOp, LoraOp],
    entry: Entry,
    then: str,
) -> Finding | None:
    """What is wrong between an entry of the first op and what vLLM takes for the second."""
    op, other = ops
    block_m = _block_m(op, entry.values)
    found = _others(files, ops, entry.path, same_slices=then is _ASSERT)
    differing = [(value, place) for value, place in found if value not in (block_m, None)]
    if not differing:
        return None
    value, place = differing[0]
    return Finding(
        severity="error",
        kind="moe_block_m",
        file=files[op][0].name,
        key="/".join(entry.keys),
        message=f"block_m is {block_m} here and {value} in "
        f"{prefix}{other.file_suffixes[0]}{place}: {then}; give all four MoE files one block_m",
    )


def _others(
    files: Mapping[LoraOp, tuple[TunedFile, Sequence[Entry]]],
    ops: tuple[LoraOp, LoraOp],
    path: tuple[int, ...],
    *,
    same_slices: bool,
) -> Iterator[tuple[object, str]]:
    """Every ``block_m`` that the other op may get in the launch of a path, and from where."""
    _, other = ops
    if other not in files:
        yield MOE_DEFAULTS["block_m"], ", which is not there, so that vLLM takes its default"
        return
    file, entries = files[other]
    for slices in [path[_NUM_SLICES_LEVEL]] if same_slices else _slices(entries):
        try:
            found = look_up(file.content, (path[0], slices, *path[2:]))
        except EntryMissing:
            continue  # vLLM stops there for another reason, which is told where shapes are given
        # w13 is looked up under an i of its own: twice w2's where a model fuses gate and up.
        if same_slices or found.path[-1] == path[-1]:
            yield _block_m(other, found.leaf), f" at {'/'.join(map(str, found.path))}"


def _slices(entries: Iterable[Entry]) -> list[int]:
    return sorted({entry.path[_NUM_SLICES_LEVEL] for entry in entries})


def _block_m(op: LoraOp, values: object) -> object:
    if not isinstance(values, Mapping):
        return None  # which is told of its file
    return op.values_in(values).get("block_m", MOE_DEFAULTS["block_m"])
