"""Write ``docs/results.md``, what a reader gains, from the raw files in ``studies/``.

    python studies/results.py            # writes the page
    python studies/results.py --print    # prints it

It reads every ``studies/served/*.json``, which are what ``autotune bench --server --json`` printed
(with ``config``, ``rank``, ``max_loras`` and ``date`` added, the ``command`` where it is another,
which ``files`` the folder has, and a ``source`` that says what is special), and every provenance
file below ``studies/nvidia-h100-80gb-hbm3/``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STUDIES = Path(__file__).parent
PAGE = STUDIES.parent / "docs" / "results.md"

_INTRODUCTION = """\
# Results

What tuned files gain, by model, rank and number of requests or tokens. `python studies/results.py`
writes this page from the raw files that each section names.
"""

_SERVED = """\
## In a server

A step is one forward pass in which every running request gets a token. The defaults were timed
before and after the folder: how far these two are apart is how far two servers differ by chance.
What is gained is given over the faster and over the slower of them. Saved is what the folder saves
of a step, and predicted what the times of its kernels say of that. How it is measured:
[Is my server faster?](server.md)
"""

_KERNELS = """\
## The kernels alone

How many times as fast as vLLM's default a kernel is with its tuned entry, both timed side by side.
The interval is that of the kernel that gains least, at 95 %.
"""


#: Of a table of servers.
_COLUMNS = (
    *("requests", "no LoRA ms", "defaults ms", "folder ms"),
    *("tokens a second", "saved ms", "predicted ms"),
)


class Tuned(NamedTuple):
    """A tuned folder and its entries, as its provenance file has them."""

    path: Path
    environment: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]


def page(studies: Path = STUDIES) -> str:
    """The whole page.

    Args:
        studies: The folder with the raw files.
    """
    served = (
        _served(path.relative_to(studies.parent), json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((studies / "served").glob("*.json"))
    )
    tuned = (_tuned(each, studies) for each in tuned_in(studies))
    return "\n".join([_INTRODUCTION, _SERVED, *served, _KERNELS, *tuned])


def tuned_in(studies: Path) -> Iterator[Tuned]:
    """Every tuned folder that is kept, by its path."""
    for path in sorted(studies.glob("nvidia-*/**/*_provenance.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [each for of_file in content["entries"].values() for each in of_file.values()]
        yield Tuned(path.parent, content["environment"], entries)


def _served(path: Path, told: Mapping[str, Any]) -> str:
    title = f"### {told['model']}, rank {told['rank']}, {told['max_loras']} adapters, {told['gpu']}"
    if "files" in told:
        title += f", {told['files']}"
    where = f"vLLM {told['vllm']}, {told['date']}. Raw file: `{path}`."
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
        *map(_served_row, told["rows"]),
    ]
    command = told.get(
        "command",
        f"autotune bench DIR --server --model {told['config']} --rank {told['rank']} "
        f"--max-loras {told['max_loras']} --json",
    )
    redo = f"Again: `{command}`."
    source = [told["source"], ""] if "source" in told else []
    return "\n".join([title, "", where, "", *source, *lines, "", redo, ""])


def _served_row(row: Mapping[str, Any]) -> str:
    steps = {
        name: (row.get(name) or {}).get("step_ms")
        for name in ("no_lora", "default", "default_again", "folder")
    }
    both = sorted((steps["default"], steps["default_again"]))
    gains = dict.fromkeys(f"{100 * (each / steps['folder'] - 1):+.0f}" for each in both)
    without = f"{steps['no_lora']:.2f}" if steps["no_lora"] else "–"
    predicted = row.get("predicted_ms")
    cells = [
        str(row["requests"]),
        without,
        f"{steps['default']:.2f}, {steps['default_again']:.2f}",
        f"{steps['folder']:.2f}",
        f"{' to '.join(gains)} %",
        f"{sum(both) / 2 - steps['folder']:.2f}",
        "–" if predicted is None else f"{predicted:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _tuned(tuned: Tuned, studies: Path) -> str:
    path = tuned.path.relative_to(studies.parent)
    model = path.parts[2]
    shapes = [each["shape"] for each in tuned.entries]
    ranks = ", ".join(map(str, sorted({each["rank"] for each in shapes})))
    loras = ", ".join(map(str, sorted({each["max_loras"] for each in shapes})))
    kernels = tuned.environment
    whose = "autotune's own" if kernels["provider"] == "builtin" else "vLLM's"
    version = "" if kernels["provider"] == "builtin" else f" {kernels['provider_version']}"
    by_tokens: dict[int, list[Mapping[str, Any]]] = {}
    for each in tuned.entries:
        if each.get("speedup") is not None:
            by_tokens.setdefault(each["shape"]["num_tokens"], []).append(each)
    lines = [
        "| tokens | kernels | median | least | most |",
        "|---|---|---|---|---|",
        *(_tuned_row(tokens, by_tokens[tokens]) for tokens in sorted(by_tokens)),
    ]
    name = tuned.path.name if tuned.path.name.startswith("2") else tuned.path.parent.name
    report = tuned.path.parent / f"{name}.md"
    report = report if report.exists() else tuned.path.parents[1] / f"{name}.md"
    redo = f"Again: the command is in `{report.relative_to(studies.parent)}`."
    return "\n".join(
        [
            f"### {model}, rank {ranks}, {loras} adapters, {whose} kernels{version} ({name})",
            "",
            f"{kernels['gpu']}. Raw files: `{path}/`.",
            "",
            *lines,
            "",
            redo,
            "",
        ]
    )


def _tuned_row(tokens: int, entries: Sequence[Mapping[str, Any]]) -> str:
    ratios = [each["speedup"] for each in entries]
    least = min(entries, key=lambda each: each["speedup"])
    low, high = least["interval"]
    return (
        f"| {tokens} | {len(entries)} | {statistics.median(ratios):.2f} | "
        f"{least['speedup']:.2f} [{low:.2f}, {high:.2f}] | {max(ratios):.2f} |"
    )


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="print the page, and write nothing")
    if parser.parse_args().print:
        print(page())
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
