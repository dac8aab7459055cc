"""The shapes that a check is asked about: what vLLM finds for each one in the folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from autotune.errors import EntryMissing, shown
from autotune.export.check.entries import Examined
from autotune.export.check.findings import Finding, LookedUp
from autotune.export.lookup import look_up
from autotune.launch.op import LookupKey, key_text
from autotune.launch.shape import KernelShape
from autotune.plan.traced import Asked, first_of

#: The levels of a key that say which layer it is for; the others say how the layer is served.
_SIZES = ("k", "n", "i")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedBatch:
    """A batch size that a server asked for.

    Attributes:
        num_tokens: The batch size.
        when: When it was asked for first, as in ``Asked``.
        count: How often it was asked for, by all processes and kernels together.
        outcomes: How many kernels' look-ups end in which way, as in ``LookedUp``.
    """

    num_tokens: int
    when: str
    count: int
    outcomes: Counter[str]

    def as_dict(self) -> dict[str, Any]:
        """The batch size as JSON-ready values."""
        ends = {name: self.outcomes[name] for name in ("exact", "nearest", "default", "stops")}
        return {"tokens": self.num_tokens, "when": self.when, "asked": self.count, **ends}


def by_batch(lookups: Iterable[LookedUp], asked: Iterable[Asked]) -> list[AskedBatch]:
    """What is found for every batch size that a server asked for, ascending.

    Args:
        lookups: What vLLM finds for the shapes.
        asked: The shapes, with how often they were asked for.
    """
    known = {each.shape: each for each in asked}
    by_size: dict[int, list[tuple[Asked, LookedUp]]] = {}
    for lookup in lookups:
        if lookup.shape in known:
            pair = known[lookup.shape], lookup
            by_size.setdefault(lookup.shape.num_tokens, []).append(pair)
    return [
        AskedBatch(
            num_tokens=size,
            when=first_of(one.when for one, _ in pairs),
            count=sum(one.count for one, _ in pairs),
            outcomes=Counter(lookup.outcome for _, lookup in pairs),
        )
        for size, pairs in sorted(by_size.items())
    ]


def look_up_all(
    asked: Mapping[str, Sequence[KernelShape]], read: Mapping[str, Examined], broken: Set[str]
) -> tuple[list[LookedUp], list[Finding]]:
    """Look up every shape as vLLM will.

    Args:
        asked: Per GPU its shapes.
        read: By name, the files that could be read.
        broken: The names of the files that could not.

    Returns:
        What vLLM finds for every shape, and what is wrong or worth knowing about it.
    """
    lookups, findings = [], []
    without: Counter[str] = Counter()
    for gpu, shapes in asked.items():
        for shape in shapes:
            name = shape.file_name(gpu)
            if name in read:
                lookup, finding = _looked_up(gpu, shape, read[name].file.content)
                findings += [finding] if finding else []
            elif name in broken:  # a finding about the file says so
                lookup = LookedUp(gpu=gpu, shape=shape, outcome="stops")
            else:
                lookup = LookedUp(gpu=gpu, shape=shape, outcome="default")
                without[name] += 1
            lookups.append(lookup)
    return lookups, findings + [_no_file(name, count) for name, count in without.items()]


def _no_file(name: str, count: int) -> Finding:
    return Finding(
        severity="warning",
        kind="no_file",
        file=name,
        message=f"is not there: vLLM takes its default for {count} of the shapes asked for; "
        "tune them on this GPU",
    )


def _looked_up(gpu: str, shape: KernelShape, table: Any) -> tuple[LookedUp, Finding | None]:  # noqa: ANN401 - any JSON
    key = shape.lookup_key
    lookup = partial(LookedUp, gpu=gpu, shape=shape)
    finding = partial(Finding, file=shape.file_name(gpu), key=key_text(key))
    try:
        found = look_up(table, key)
    except EntryMissing as error:
        if error.vllm_error is None:  # the file is empty; a finding about it says so
            return lookup(outcome="default"), None
        return lookup(outcome="stops"), finding(
            severity="error",
            kind="missing_num_slices" if error.vllm_error == "KeyError" else "lookup_stops",
            message=f"{error} ({error.vllm_error} in the server)",
        )
    if found.path == key:
        return lookup(outcome="exact", path=found.path, entry=found.leaf), None
    distances = ", ".join(
        f"{level} {taken} in place of {wanted} ({shown(abs(taken - wanted))} off)"
        for level, wanted, taken in zip(key._fields, key, found.path, strict=True)
        if taken != wanted
    )
    return lookup(outcome="nearest", path=found.path, entry=found.leaf), finding(
        severity="warning",
        kind="nearest_key",
        message=f"not there: vLLM takes the nearest, {key_text(found.path)}: {distances}; "
        "tune it too",
    )


def unmatched(
    asked: Mapping[str, Sequence[KernelShape]], read: Iterable[Examined]
) -> Iterator[Finding]:
    """The sizes in a GPU's files that no shape asked for has."""
    sizes: dict[str, set[str]] = {}
    for gpu, shapes in asked.items():
        for shape in shapes:
            sizes.setdefault(shape.file_name(gpu), set()).add(_sizes(shape.lookup_key))
    for each in read:
        if each.file.name not in sizes:
            continue
        for size in dict.fromkeys(_sizes(entry.key) for entry in each.entries):
            if size not in sizes[each.file.name]:
                yield Finding(
                    severity="warning",
                    kind="matches_no_layer",
                    file=each.file.name,
                    message=f"no shape asked for has {size}, which entries here are for: right for "
                    "another model or rank, else they only ever mislead the nearest key",
                )


def _sizes(key: LookupKey) -> str:
    """A layer's sizes in words, such as ``k 4096 and n 16``."""
    levels = key._asdict().items()
    return " and ".join(f"{name} {size}" for name, size in levels if name in _SIZES)
