"""The four MoE files must give one ``block_m`` for the four kernels of a layer.

vLLM sorts and pads the tokens for w13's shrink, in steps of its ``block_m``, and reuses that for
the three kernels that follow (``vllm/lora/ops/triton_ops/fused_moe_lora_op.py``, 0.33.0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from autotune.errors import EntryMissing, shown
from autotune.export.check.entries import Entry, TunedFile
from autotune.export.check.findings import Finding, LookedUp
from autotune.export.lookup import look_up
from autotune.launch.moe_layer import by_layer, names_of
from autotune.launch.op import MOE_DEFAULTS, LookupKey, LoraOp, MoeKey, key_text

_ASSERT = "vLLM would stop at an assert"
_SILENT = "vLLM would compute wrong numbers and say nothing"

#: Which of the levels of keys ``num_slices`` is.
_SLICES_LEVEL = MoeKey._fields.index("num_slices")

#: Which two ops are compared, and what vLLM does where they differ.
_PAIRS = (
    (LoraOp.W13_SHRINK, LoraOp.W13_EXPAND, _ASSERT),
    (LoraOp.W2_SHRINK, LoraOp.W2_EXPAND, _ASSERT),
    (LoraOp.W13_SHRINK, LoraOp.W2_SHRINK, _SILENT),
)


@dataclass(frozen=True, slots=True)
class MoeFile:
    """A MoE file that could be read.

    Attributes:
        name: Its name in the folder.
        content: Its content, which may be any JSON value.
        entries: Its entries, in the file's order.
        slices: The values of ``num_slices`` that its entries have. It may be added to, beside
            ``content``: going through all entries for each one of them would take minutes.
    """

    name: str
    content: Any
    entries: tuple[Entry, ...]
    slices: set[int]

    @classmethod
    def of(cls, file: TunedFile, entries: Iterable[Entry]) -> MoeFile:
        """Collect what is compared."""
        entries = tuple(entries)
        slices = {int(spelled) for spelled in {entry.keys[_SLICES_LEVEL] for entry in entries}}
        return cls(file.name, file.content, entries, slices)


def coupling_findings(prefix: str, files: Mapping[LoraOp, MoeFile]) -> Iterator[Finding]:
    """Every pair of MoE entries that vLLM takes for one launch and whose ``block_m`` differ.

    A file that is not there counts as vLLM's default, which has a ``block_m`` of 64.

    Args:
        prefix: The GPU's part of the files' names.
        files: The GPU's MoE files that could be read.
    """
    for first, second, then in _PAIRS:
        asked = [
            (op, entry) for op in (first, second) if op in files for entry in files[op].entries
        ]
        seen = set()
        for op, entry in asked:
            other = second if op is first else first
            if (place := _launch(entry.key, same_slices=then is _ASSERT)) in seen:
                continue
            finding = _compared(prefix, files, (op, other), entry, then)
            if finding:
                seen.add(place)
                yield finding


def taken_for_others(
    files: Mapping[LoraOp, MoeFile],
    op: LoraOp,
    key: LookupKey,
    others: Collection[LoraOp],
) -> Iterator[tuple[LoraOp, object, str]]:
    """Every ``block_m`` that vLLM takes for other ops in the launch of an op's key.

    Args:
        files: As for ``coupling_findings``.
        op: The op whose key it is.
        key: The key under which vLLM looks up that op's entry.
        others: The ops to ask for; those that are not compared with ``op`` itself are passed over.

    Yields:
        The other op, the ``block_m``, and where it comes from, to be read after the file's name.
    """
    for first, second, then in _PAIRS:
        other = second if op is first else first
        if op in (first, second) and other in others:
            for value, place in _others(files, (op, other), key, same_slices=then is _ASSERT):
                yield other, value, place


def layer_findings(lookups: Iterable[LookedUp], told: Set[str]) -> Iterator[Finding]:
    """MoE layers whose ops vLLM launches with more than one ``block_m``.

    Only shapes say which w13 and w2 belong to one layer if a model fuses gate and up: vLLM then
    looks them up under two intermediate sizes.

    Args:
        lookups: What vLLM finds for every shape of one GPU.
        told: The places in the findings of ``coupling_findings``.
    """
    for layer, those in by_layer(lookups, lambda one: one.shape).items():
        taken = [(one, _taken_block_m(one)) for one in those if one.outcome != "stops"]
        known = [(one, block_m) for one, block_m in taken if block_m is not None]
        if len({shown(block_m) for _, block_m in known}) > 1 and not told & {
            _place(one) for one, _ in known
        }:
            first, _ = known[0]
            found = ", ".join(
                f"{shown(block_m)} for {names_of([one.shape.op])}" for one, block_m in known
            )
            yield Finding(
                severity="error",
                kind="moe_block_m",
                file=first.file,
                key=key_text(first.path or first.shape.lookup_key),
                message=f"vLLM takes block_m {found} in the MoE layer {layer.label}: "
                f"{_SILENT}, or stop; give all four MoE files one block_m",
            )


def _taken_block_m(lookup: LookedUp) -> object:
    if lookup.outcome == "default":
        return MOE_DEFAULTS["block_m"]
    return _block_m(lookup.shape.op, lookup.entry)


def _place(lookup: LookedUp) -> str:
    return f"{lookup.file} at {key_text(lookup.path or ())}"


def _launch(key: LookupKey, *, same_slices: bool) -> LookupKey:
    """What tells one launch from another; w13 and w2 of a launch differ in ``num_slices``."""
    return key if same_slices else key._replace(num_slices=0)


def _compared(
    prefix: str,
    files: Mapping[LoraOp, MoeFile],
    ops: tuple[LoraOp, LoraOp],
    entry: Entry,
    then: str,
) -> Finding | None:
    """How an entry of the first op disagrees with what vLLM takes for the second; None if not."""
    op, other = ops
    block_m = _block_m(op, entry.values)
    found = _others(files, ops, entry.key, same_slices=then is _ASSERT)
    differing = [(value, place) for value, place in found if value not in (block_m, None)]
    if not differing:
        return None
    value, place = differing[0]
    return Finding(
        severity="error",
        kind="moe_block_m",
        file=files[op].name,
        key=key_text(entry.keys),
        message=f"block_m is {shown(block_m)} here and {shown(value)} in "
        f"{prefix}{other.file_suffixes[0]}{place}: {then}; give all four MoE files one block_m",
    )


def _others(
    files: Mapping[LoraOp, MoeFile],
    ops: tuple[LoraOp, LoraOp],
    key: LookupKey,
    *,
    same_slices: bool,
) -> Iterator[tuple[object, str]]:
    """Every ``block_m`` that the other op may get in the launch of a key, and where it is from."""
    _, other = ops
    if other not in files:
        yield MOE_DEFAULTS["block_m"], ", which is not there, so that vLLM takes its default"
        return
    for slices in [key.num_slices] if same_slices else sorted(files[other].slices):
        try:
            found = look_up(files[other].content, key._replace(num_slices=slices))
        except EntryMissing:
            continue  # vLLM stops here anyway; a look-up of a shape reports that
        # Where a model fuses gate and up, w13 has an i of its own, twice that of w2.
        if same_slices or _intermediate(found.path) == _intermediate(key):
            yield _block_m(other, found.leaf), f" at {key_text(map(shown, found.path))}"


def _intermediate(key: LookupKey) -> int | None:
    return key.i if isinstance(key, MoeKey) else None


def _block_m(op: LoraOp, values: object) -> object:
    if not isinstance(values, Mapping):
        return None  # a finding about the file says so
    return op.values_in(values).get("block_m", MOE_DEFAULTS["block_m"])
