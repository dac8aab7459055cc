"""Time adding one layer's entries to a folder that holds very many, as ``export --merge`` does.

    python studies/cost_merge.py [--megabytes 29]

It makes a folder of dense and MoE entries of that size, adds a MoE layer and a dense shape, and
prints the seconds that writing and checking took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from autotune.choose.selection import SAME, Selection
from autotune.export import VllmExporter
from autotune.export.check import check_exported
from autotune.export.nested import as_text, put_leaf, sorted_table
from autotune.export.provenance import Entries, as_content, entry_of, provenance_name
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.op import MOE_DEFAULTS, MOE_OPS, LoraOp, key_text
from autotune.launch.shape import KernelShape

HERE = Environment(
    gpu="NVIDIA H100 80GB HBM3",
    provider="builtin",
    provider_version="1",
    torch="2.11.0",
    triton="3.6.0",
    driver="580.1",
)

#: What a dense entry holds here, beside what it shares with a MoE entry.
_DENSE = MOE_DEFAULTS | {"num_ctas": 1}

#: Bytes of an entry, in the op's file and in the provenance; to choose their number.
_ENTRY_BYTES = 1_435


class Seconds(NamedTuple):
    """What one ``export --merge`` took."""

    writing: float
    checking: float


def layers() -> Iterator[list[KernelShape]]:
    """Layers without end: a dense shape and the four of a MoE layer, each for many batches."""
    hidden = 1024
    while True:
        for tokens in range(1, 201):
            dense = {"op": "shrink", "num_tokens": tokens, "hidden_size": hidden}
            moe = {"num_tokens": tokens, "hidden_size": hidden, "intermediate_size": 768}
            moe |= {"num_experts": 128, "top_k": 8, "rank": 256, "max_loras": 8}
            yield [
                KernelShape.from_mapping(dense | {"rank": 16, "max_loras": 8}),
                *(KernelShape.from_mapping(moe | {"op": op.value}) for op in MOE_OPS),
            ]
        hidden += 64


def selection(shape: KernelShape) -> Selection:
    """A selection of vLLM's default, with samples of it alone."""
    values = MOE_DEFAULTS if shape.op.is_moe else _DENSE
    config = KernelConfig.from_mapping(shape.op, values)
    return Selection(
        shape=shape,
        config=config,
        default=config,
        samples_us={config: (10.0, 10.1, 10.2)},
        ratio=SAME,
        trials=1,
        outcomes={"ok": 1},
    )


def fill(folder: Path, megabytes: float) -> None:
    """Write a folder of about this size, as many exports would leave it."""
    tables: dict[str, dict[str, Any]] = {}
    entries: Entries = {}
    of_op: dict[LoraOp, Selection] = {}
    number = round(megabytes * 1e6 / _ENTRY_BYTES / (1 + len(MOE_OPS)))
    for _, shapes in zip(range(number), layers(), strict=False):
        for shape in shapes:
            one = replace(of_op.setdefault(shape.op, selection(shape)), shape=shape)
            name = shape.file_name(HERE.gpu)
            put_leaf(tables.setdefault(name, {}), shape.lookup_key, one.config.as_dict())
            entries.setdefault(name, {})[key_text(shape.lookup_key)] = entry_of(one, HERE)
    for name, table in tables.items():
        levels = 6 if "MOE" in name else 5
        (folder / name).write_text(as_text(sorted_table(table, levels)))
    (folder / provenance_name(HERE.gpu)).write_text(as_text(as_content(entries, HERE)))


def merge_seconds(folder: Path, shapes: Sequence[KernelShape]) -> Seconds:
    """Add entries to a folder and check it, as ``export --merge`` does."""
    started = time.perf_counter()
    VllmExporter().export(map(selection, shapes), HERE, folder, merge=True)
    written = time.perf_counter()
    check_exported(folder, {HERE.gpu: shapes})
    return Seconds(written - started, time.perf_counter() - written)


def main() -> None:
    """Make the folder, add to it, and print what that took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=29, help="size of the folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name), given.megabytes)
        size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
        new = [replace(shape, max_loras=4, active_loras=4) for shape in next(layers())]
        took = merge_seconds(Path(name), new)
    print(f"{size:.0f} MB: {took.writing:.1f} s to write, {took.checking:.1f} s to check")


if __name__ == "__main__":
    main()
