"""Adds packs to the collection of tuned files that comes with autotune, and writes its table.

    python studies/collect.py PACK... [--into autotune/configs]
    python studies/collect.py --lost BENCHED.json
    python studies/collect.py --table

A pack is what ``autotune configs --pack`` wrote; it may be a stranger's. Nothing is written unless
every pack is sound. An entry is refused if it is slower than vLLM's default, beyond the noise. Of
two entries for one shape the later release counts, then the later day. Where two shapes have one
key (slices of different sizes), the entry that is there stays, and a line says so.

``--lost`` takes out the dense entries that were slower than the default, or did not run, in what
``autotune bench $(autotune configs --path) ... --json`` printed, on a newer release, say.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError, ExportError, InputError
from autotune.export.bench import DOES_NOT_RUN
from autotune.export.check.examine import check_folder
from autotune.export.collection import (
    COLLECTION,
    Collected,
    Tuned,
    collected,
    newer,
    texts_of,
    write_folder,
)
from autotune.export.covered import Holding, covered, holdings
from autotune.export.names import PROVENANCE_SUFFIX
from autotune.export.packs import read_pack
from autotune.export.tuned_entry import TunedEntry
from autotune.files import try_folder, write_errors
from autotune.launch.op import gpu_file_prefix, key_text
from autotune.launch.shape import KernelShape
from autotune.plan.study import StudyPlan

#: The releases of vLLM that a folder is checked for: those that ``tests/vllm`` asks.
RELEASES = ("0.11.1", "0.15.1", "0.22.1", "0.28.0", "0.33.0")

#: Bytes of the whole collection: it is part of the wheel.
MOST_BYTES = 3 * 2**20

#: Where the configs of models are, by which it is known what a server looks up.
MODELS = Path(__file__).parent / "models"

#: The page whose table this script writes, and what stands before and after the table.
PAGE = Path(__file__).parents[1] / "docs" / "configs.md"
BEGIN, END = "<!-- made by studies/collect.py --table -->\n", "<!-- end -->\n"

_HEADER = (
    "| GPU | model | TP | rank | max_loras | kernels | measured | shapes | batch sizes | median "
    "| least | exact of auto |"
)

_ADVICE = "free the place, or give another folder with --into"


@dataclass(slots=True)
class Merged:
    """A GPU's folder as it will be, and what was done for it.

    Attributes:
        tuned: The entries.
        added: How many entries are new.
        renewed: How many took the place of an older one of the same shape.
        lines: What the maintainer should know.
    """

    tuned: Tuned
    added: int = 0
    renewed: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, pack: Tuned) -> None:
        """Add a pack's entries."""
        collide: dict[tuple[str, KernelShape, KernelShape], list[str]] = {}  # by all but the batch
        for name, of_file in pack.items():
            slow = [text for text, entry in of_file.items() if entry.is_throttled]
            if slow:
                self.lines.append(f"{name}: {len(slow)} entries were throttled, {slow[0]} first")
            there = self.tuned.setdefault(name, {})
            for text, entry in of_file.items():
                older = there.get(text)
                if older is None:
                    self.added += 1
                    there[text] = entry
                elif older.shape == entry.shape:
                    there[text] = _of_both(older, entry)
                    self.renewed += there[text].config != older.config
                else:
                    ours, theirs = (replace(one.shape, num_tokens=1) for one in (older, entry))
                    collide.setdefault((name, ours, theirs), []).append(
                        f"{name} at {text}: {older.shape.label} stays; {entry.shape.label} has the "
                        "same key"
                    )
        for first, *more in collide.values():
            self.lines.append(f"{first}, and at {len(more)} more batch sizes" if more else first)

    def take_out(self, rows: Sequence[Any]) -> None:
        """Take out the entries that lost to the default when they were timed again."""
        for row in rows:
            text = key_text(row["key"])
            for name, of_file in self.tuned.items():
                lost = of_file.get(text)
                if lost is None or lost.shape.op.value != row["op"]:
                    continue
                if row["verdict"] not in ("slower", DOES_NOT_RUN):
                    continue
                if lost.shape.op.is_moe:
                    self.lines.append(f"{name} at {text} lost, and stays: its layer is one")
                elif lost.config.as_dict() == row["config"]:
                    self.lines.append(f"{name} at {text} is taken out: {row['verdict']}")
                    self.tuned[name] = {key: of_file[key] for key in of_file if key != text}
        self.tuned = {name: of_file for name, of_file in self.tuned.items() if of_file}


def benched_rows(path: Path) -> list[Any]:
    """What ``autotune bench --json`` printed.

    Raises:
        InputError: The file holds something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"key": list, "verdict": str, "config": dict, "op": str}
        if isinstance(rows, list) and all(
            isinstance(row[name], kind) for row in rows for name, kind in wanted.items()
        ):
            return rows
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not what autotune bench --json prints: {error}") from error
    raise InputError(f"{path} is not what autotune bench --json prints")


def _of_both(older: TunedEntry, entry: TunedEntry) -> TunedEntry:
    """The newer of two entries of one shape, tuned for the models of both."""
    models = dict.fromkeys([*older.tuned_for, *entry.tuned_for])
    return replace(newer(entry, older), tuned_for=tuple(models))


def refuse_slower(path: Path, tuned: Tuned) -> None:
    """Refuse a pack with an entry that is slower than vLLM's default.

    Raises:
        InputError: It has one.
    """
    for name, of_file in tuned.items():
        for text, entry in of_file.items():
            if entry.served is not None and entry.served.verdict == "slower":
                raise InputError(
                    f"{path}: {name} at {text} is slower than vLLM's default "
                    f"({entry.served.value:.3f}x); take it out, or tune it again"
                )


def refuse_unsound(folder: Path, gpu: str) -> None:
    """Refuse a folder in which ``autotune check`` finds an error, for any release.

    Raises:
        InputError: It finds one.
    """
    for release in RELEASES:
        report = check_folder(folder, asked={gpu: ()}, device=None, release=release, environ={})
        for finding in report.findings:
            if finding.is_error:
                raise InputError(f"vLLM {release}: {finding}")


def collect(
    packs: Sequence[Path], root: Path, *, lost: Path | None = None, gpu: str | None = None
) -> list[str]:
    """Add packs to a collection, and take out what lost; returns what to say.

    Args:
        packs: The packs.
        root: The collection.
        lost: What ``autotune bench --json`` printed; None for nothing.
        gpu: Where that was timed; None if the collection is of one GPU.

    Raises:
        InputError: A pack is not sound, or the collection would be too large.
    """
    try_folder(root, ExportError, advice=_ADVICE)
    merged = {each.gpu: Merged(each.tuned) for each in collected(root)}
    for path in packs:
        pack = read_pack(path)
        refuse_slower(path, pack.tuned)
        merged.setdefault(pack.gpu, Merged({})).add(pack.tuned)
    if lost is not None:
        timed_on = [each for each in merged if gpu in (None, each)]
        if len(timed_on) != 1:
            raise InputError(f"--lost: give --gpu, one of {', '.join(merged) or 'none'}")
        merged[timed_on[0]].take_out(benched_rows(lost))
    with tempfile.TemporaryDirectory() as name:
        for of, each in merged.items():
            if not each.tuned:
                raise InputError(f"no entry of the {of} would be left: delete its folder")
            write_folder(each.tuned, Path(name) / gpu_file_prefix(of))
            refuse_unsound(Path(name) / gpu_file_prefix(of), of)
    lines = []
    files = {
        root / gpu_file_prefix(of) / file: content
        for of, each in merged.items()
        for file, content in _files(each.tuned).items()
    }
    size = sum(map(len, files.values()))
    if size > MOST_BYTES:
        raise InputError(f"the collection would have {size} bytes, more than {MOST_BYTES}")
    for path in {path for path in root.glob("*/*.json*") if path not in files}:
        path.unlink()  # no entry of it is left
    for path, content in files.items():
        with write_errors(path, ExportError, advice=_ADVICE):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for of, each in merged.items():
        lines += [f"{of}: {each.added} entries added, {each.renewed} renewed", *each.lines]
    return [*lines, f"{root}: {size} bytes"]


def _files(tuned: Tuned) -> dict[str, bytes]:
    """The files of a folder; what vLLM does not read is compressed."""
    return {
        f"{name}.gz" if name.endswith(PROVENANCE_SUFFIX) else name: (
            gzip.compress(text.encode(), mtime=0)
            if name.endswith(PROVENANCE_SUFFIX)
            else text.encode()
        )
        for name, text in texts_of(tuned).items()
    }


def exact_of_auto(holding: Holding, every: Sequence[Collected]) -> str:
    """How many of the look-ups that ``--tokens auto`` lists for a model are exact."""
    config = MODELS / f"{holding.model}.json"
    if not config.exists():
        return "–"
    server = {"tensor_parallel": holding.tensor_parallel}
    server |= {"vllm": holding.kernels.removeprefix("vllm-")}
    plan = StudyPlan.of_model(str(config)).with_model(server, {})
    plan = plan.override(rank=holding.rank, max_loras=holding.max_loras)
    (of,) = (each for each in every if each.gpu == holding.gpu)
    found = covered(of, plan.looked_up)
    return f"{len(found.exact)} of {len(plan.looked_up)}"


def table(every: Sequence[Collected]) -> str:
    """The table of the page, made from the files."""
    lines = [_HEADER, f"|{'---|' * (_HEADER.count('|') - 1)}"]
    for each in holdings(every):
        cells = (
            *(each.gpu, each.model or "–", each.tensor_parallel or "–", each.rank, each.max_loras),
            *(each.kernels, each.measured_at or "–", each.shapes, each.batch_sizes),
            *(f"{ratio:.2f}x" if ratio else "–" for ratio in (each.median, each.least)),
            exact_of_auto(each, every),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def page_with_table(page: str, every: Sequence[Collected]) -> str:
    """The page with the table of what the collection holds now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    models = len({holding.model for holding in holdings(every)})
    there = f"So far: {models} models, {len(every)} {'GPU' if len(every) == 1 else 'GPUs'}."
    return f"{before}{BEGIN}\n{there}\n\n{table(every)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("packs", nargs="*", type=Path, metavar="PACK")
    parser.add_argument("--into", type=Path, default=COLLECTION, metavar="DIR")
    parser.add_argument("--lost", type=Path, metavar="JSON", help="take out what lost here")
    parser.add_argument("--gpu", metavar="NAME", help="where --lost was timed")
    parser.add_argument("--table", action="store_true", help="write the table of the docs")
    given = parser.parse_args(arguments)
    if not (given.packs or given.lost or given.table):
        parser.error("give packs, --lost or --table")
    try:
        if given.packs or given.lost:
            said = collect(given.packs, given.into, lost=given.lost, gpu=given.gpu)
            print("\n".join(said))
        if given.table:
            text = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(page_with_table(text, collected(given.into)), encoding="utf-8")
    except AutotuneError as error:
        print(f"collect: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
