"""Tables for the terminal."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from autotune.choose.selection import Ratio, Selection
from autotune.errors import printable
from autotune.launch.moe_layer import MoeLayer, names_of
from autotune.launch.op import MOE_OPS, key_text
from autotune.launch.shape import KernelShape
from autotune.launch.sizes import is_shrink, matmul_sizes, sizes_text
from autotune.measure.measurement import outcome_counts

if TYPE_CHECKING:
    from autotune.export.bench import Benched
    from autotune.export.check import AskedBatch, Finding, LookedUp, Report

#: How many findings of one kind in one file are printed; a file may have thousands of entries.
_MOST_ALIKE = 5

#: Printed below the table of a run: what its last columns count.
OUTCOMES_TEXT = (
    "invalid: thrown out by a rule, never launched. failed: did not compile or run, or gave wrong "
    "numbers. cut short: plainly slower than the best, so its timing was ended early."
)

#: How a look-up ends, as ``LookedUp.outcome`` has it.
_ENDS = ("exact", "nearest", "default", "stops")

#: Spaces between two columns of ``plain_table``.
_GAP = 2

#: Up to so many batch sizes of a server that served have a row each.
_MOST_SERVING = 30

#: Up to so many batch sizes are listed one by one.
_MOST_COUNTS = 6


def selection_cells(selection: Selection) -> tuple[str, str, str]:
    """The default's µs, the tuned µs, and the ratio with its interval, as text."""
    tuned_us = us_text(selection.latency_us)
    if selection.ratio is None:
        return us_text(None), tuned_us, _ratio_text(None)
    ratio = "1.00x (default)" if selection.is_default else _ratio_text(selection.ratio)
    return us_text(selection.default_latency_us), tuned_us, ratio


def bench_cells(row: Benched) -> tuple[str, str, str, str, str]:
    """The default's µs, the tuned µs, the ratio, the verdict and the shares of the roofline."""
    verdict = row.verdict + (" (throttled)" if row.is_throttled else "")
    shares = f"{_percent(row.default_share)} -> {_percent(row.tuned_share)}"
    ratio = _ratio_text(row.ratio)
    return us_text(row.default_us), us_text(row.tuned_us), ratio, verdict, shares


def verdict_counts(rows: Iterable[Benched]) -> str:
    """How many shapes have which verdict, such as ``27 faster, 1 same, 0 slower``."""
    counts = Counter({"faster": 0, "same": 0, "slower": 0})
    counts.update(row.verdict for row in rows)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def tuned_table(
    rows: Sequence[tuple[KernelShape, Selection | None, Counter[str]]],
    layers: Mapping[KernelShape, str],
    *,
    narrow: bool = False,
) -> Table:
    """One row a shape: the default against what was chosen, and what the search did.

    Args:
        rows: Per shape its selection, None where nothing works, and the outcomes of its trials.
        layers: Per shape the names of its layers.
        narrow: Whether to leave out the intervals and how many trials failed.
    """
    counted = ("trials",) if narrow else ("trials", "invalid", "failed", "cut short")
    table = plain_table(
        ("op", "layer", "sizes"), ("tokens", "default µs", "tuned µs", "ratio", *counted)
    )
    for shape, selection, outcomes in rows:
        default_us, tuned_us, ratio = (
            selection_cells(selection) if selection else ("-", "-", "nothing works")
        )
        op = shape.op.value
        if narrow:
            op, ratio = names_of((shape.op,)), ratio.partition(" [")[0]
        counts = map(str, (outcomes.total(), *outcome_counts(outcomes)))
        names = (op, layers.get(shape, ""), sizes_text(shape), str(shape.num_tokens))
        table.add_row(*names, default_us, tuned_us, ratio, *list(counts)[: len(counted)])
    return table


def layer_lines(selections: Iterable[Selection | None]) -> list[str]:
    """One line a MoE layer: the ``block_m`` that its ops share, and what they gain together."""
    lines = {}
    for one in selections:
        if one is not None and one.layer is not None:
            ratio = _ratio_text(one.layer.ratio)
            layer = MoeLayer.of(one.shape)
            ops = "four ops" if len(one.layer.ops) == len(MOE_OPS) else names_of(one.layer.ops)
            lines[layer] = (
                f"MoE layer {layer.label}: block_m {one.layer.block_m} for its {ops}, {ratio}"
            )
    return list(lines.values())


def bench_table(rows: Iterable[Benched]) -> Table:
    """One row a shape: the default against the folder's entry.

    Args:
        rows: The timings of each shape.
    """
    table = plain_table(
        ("op", "layer", "sizes"),
        ("tokens", "default µs", "tuned µs", "ratio", "verdict", "share of roofline"),
    )
    for row in rows:
        names = (row.shape.op.value, row.layer, sizes_text(row.shape), tokens_text(row))
        table.add_row(*names, *bench_cells(row))
    return table


def tokens_text(row: Benched) -> str:
    """The token count and the key that vLLM takes for it, such as ``4 (as 1)``.

    The shape's own key is not named, unless the count lies between the plan's.
    """
    count, taken = row.shape.num_tokens, row.path
    if taken._replace(m=count) != row.shape.lookup_key:
        return f"{count} (as {key_text(taken)})"
    return f"{count} (as {taken.m})" if row.is_between or taken.m != count else str(count)


def shapes_table(layers: Mapping[KernelShape, str], runs: Mapping[KernelShape, int]) -> Table:
    """One row a kind of shape: its layers and sizes, and the file and key that vLLM looks up.

    Args:
        layers: Per shape the names of its layers.
        runs: How often a forward pass launches each shape; 0 where that is not known.
    """
    has_runs = any(runs.values())
    table = plain_table(
        ("layer", "op"), (*(("runs",) if has_runs else ()), "slices", "hidden", "rank")
    )
    for name in ("slice sizes", "file", "key", "tokens (m)"):
        table.add_column(name, overflow="fold")
    kinds: dict[tuple[KernelShape, str], list[KernelShape]] = {}
    for shape, layer in layers.items():
        kinds.setdefault((shape.without_batch, layer), []).append(shape)
    for (kind, layer), those in kinds.items():
        numbers = (kind.num_slices, kind.hidden_size, kind.rank)
        key = key_text((kind.lookup_key._asdict() | {"m": "m"}).values())
        tokens = counts_text([shape.num_tokens for shape in those])
        counts = [str(runs[those[0]])] if has_runs else []
        row = (layer, kind.op.value, *counts, *map(str, numbers), _slice_sizes_text(kind))
        table.add_row(*row, kind.file_name("{gpu}"), key, tokens)
    return table


def shape_rows(
    layers: Mapping[KernelShape, str], runs: Mapping[KernelShape, int]
) -> list[dict[str, Any]]:
    """The rows of ``shapes --json``: the fields of each shape, its layers, file and key.

    Args:
        layers: Per shape the names of its layers.
        runs: How often a forward pass launches each shape; 0 where that is not known.
    """
    return [
        shape.as_dict()
        | {"layer": layer, "runs": runs[shape] or None}
        | {"file": shape.file_name("{gpu}"), "key": shape.lookup_key}
        for shape, layer in layers.items()
    ]


def counts_text(counts: Sequence[int]) -> str:
    """Batch sizes, shortened where they are many, such as ``1, 2 ... 8192 (14)``."""
    if len(counts) <= _MOST_COUNTS:
        return ", ".join(map(str, counts))
    return f"{counts[0]}, {counts[1]} ... {counts[-1]} ({len(counts)})"


def _slice_sizes_text(shape: KernelShape) -> str:
    """What a slice reads or writes on this device, such as ``4096+1024+1024`` or ``768 x2``."""
    if len(set(shape.slice_sizes)) > 1:
        return "+".join(map(str, shape.slice_sizes))
    _, n, k = matmul_sizes(shape)
    text = str(k if is_shrink(shape.op) else n)
    text += f" x{shape.num_slices}" if shape.num_slices > 1 else ""
    if not shape.op.is_moe:
        return text
    elsewhere = shape.global_experts - shape.num_experts
    there = f" of {shape.global_experts}" if elsewhere else ""
    return f"{text}, top {shape.top_k}, {shape.num_experts}{there} experts"


def studies_text(count: int, seconds: float, trials: int) -> str:
    """How many studies there are, and about how long they take."""
    minutes = max(1, round(seconds / 60))
    time = f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
    return (
        f"{_counted(count, 'study', 'studies')} of up to {trials} trials: about {time} "
        "on an H100 with 16 cores, less where spaces are small"
    )


def check_table(lookups: Iterable[LookedUp], layers: Mapping[KernelShape, str]) -> Table:
    """One row a shape: what vLLM asks its file for, and what it finds.

    Args:
        lookups: What each look-up found.
        layers: Per shape the names of its layers.
    """
    table = plain_table(("op", "layer", "sizes"), ("tokens",))
    for name in ("file", "key", "found"):
        table.add_column(name, overflow="fold")
    for lookup in lookups:
        shape = lookup.shape
        key = key_text(shape.lookup_key)
        names = (shape.op.value, layers.get(shape, ""), sizes_text(shape), str(shape.num_tokens))
        table.add_row(*names, lookup.file, key, _found_text(lookup))
    return table


def batches_table(batches: Iterable[AskedBatch]) -> Table:
    """One row a batch size that a server asked for: how many of its look-ups end in which way.

    Where many sizes came up while it served, those between two powers of two are one row.
    """
    listed = list(batches)
    serving = [each for each in listed if each.when == "serving"]
    groups = [[each] for each in listed if each.when != "serving"]
    if len(serving) > _MOST_SERVING:
        by_power = itertools.groupby(serving, key=lambda each: each.num_tokens.bit_length())
        groups += [list(those) for _, those in by_power]
    else:
        groups += [[each] for each in serving]
    table = plain_table((), ("tokens", "asked", *_ENDS))
    table.add_column("when")
    for those in sorted(groups, key=lambda those: those[0].num_tokens):
        first, last = those[0].num_tokens, those[-1].num_tokens
        tokens = str(first) if first == last else f"{first} to {last} ({len(those)} sizes)"
        ends = (str(sum(each.outcomes[name] for each in those)) for name in _ENDS)
        table.add_row(tokens, str(sum(each.count for each in those)), *ends, those[0].when)
    return table


def _found_text(lookup: LookedUp) -> str:
    if lookup.outcome == "nearest" and lookup.path is not None:
        return f"nearest: {key_text(lookup.path)}"
    texts = {"exact": "exact", "default": "no file: vLLM's default", "stops": "vLLM stops"}
    return texts[lookup.outcome]


def finding_lines(findings: Iterable[Finding]) -> list[str]:
    """One line a finding; of many alike in one file the first few, and how many more there are."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        group = (finding.severity, finding.kind, finding.file)
        alike.setdefault(group, []).append(finding)
    lines: list[str] = []
    for (severity, _, file), those in alike.items():
        lines += map(str, those[:_MOST_ALIKE])
        if len(those) > _MOST_ALIKE:
            more = len(those) - _MOST_ALIKE
            place = ": ".join(filter(None, (severity, printable(file))))
            lines.append(f"{place}: and {more} more like the last; --json has all")
    return lines


def check_counts(report: Report) -> str:
    """One line: how many look-ups ended in which way, and how many findings there are."""
    counts = Counter(dict.fromkeys(_ENDS, 0))
    counts.update(lookup.outcome for lookup in report.lookups)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    shapes = f"{_counted(counts.total(), 'shape')} looked up: {told}; " if report.lookups else ""
    severities = report.severities
    ends = ", ".join(_counted(severities[name], name) for name in ("error", "warning"))
    late = (
        ""
        if report.late is None
        else (f"; {_counted(report.late, 'kernel')} compiled while serving")
    )
    return f"Checked {report.folder} for vLLM {report.release}: {shapes}{ends}{late}"


def _counted(count: int, noun: str, nouns: str = "") -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def _ratio_text(ratio: Ratio | None) -> str:
    """A ratio and its interval, such as ``1.84x [1.80, 1.88]``."""
    return "-" if ratio is None else f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def us_text(latency_us: float | None, *, missing: str = "does not run") -> str:
    """A latency in microseconds with two decimals, or what stands for a missing one."""
    return missing if latency_us is None else f"{latency_us:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def plain_table(words: Iterable[str], numbers: Iterable[str]) -> Table:
    """A table without lines, with columns of words on the left and of numbers on the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def tables_within(
    width: int, names: Sequence[str], rows: Sequence[Sequence[str]], *, keys: int
) -> list[Table]:
    """A table of numbers that is ``width`` columns wide at most, or several that are.

    Args:
        width: Columns of the terminal.
        names: The columns' names.
        rows: The cells of each row, as many as there are names.
        keys: How many of the first columns tell a row: every table has them.
    """
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    firsts = list(range(keys))
    chosen, used = [firsts], _width_of(widths[:keys])
    for number in range(keys, len(names)):
        if used + _GAP + widths[number] > width and len(chosen[-1]) > keys:
            chosen.append(firsts)
            used = _width_of(widths[:keys])
        chosen[-1] = [*chosen[-1], number]
        used += _GAP + widths[number]
    tables = []
    for numbers in chosen:
        table = plain_table((), (names[number] for number in numbers))
        for row in rows:
            table.add_row(*(row[number] for number in numbers))
        tables.append(table)
    return tables


def _width_of(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
