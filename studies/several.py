"""How much faster are several GPUs of a host? Cold runs of one study, one after another.

    python studies/several.py STUDY [--gpus 1,2,4] [--ray ADDRESS] [-o RAW.json] [-- FLAGS]

Each run has a database and an empty compile cache of its own, and of the host's cores the share of
its GPUs. A Ray cluster has the cache and the cores that its nodes were started with, so
start them with an empty ``TRITON_CACHE_DIR``. FLAGS are handed on to ``autotune run``; give
``--no-configs`` for a model of the collection, which is only confirmed otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from autotune.measure.cuda.visible import visible_devices

AUTOTUNE = (sys.executable, "-m", "autotune")

HEAD = ("GPUs", "cores", "whole", "run", "trials", "GPUs busy", "compilers busy", "gain", "as fast")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print the table; the exit code of the first run that failed, or 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("study", nargs="?", help="a study file; the quick-start study if none")
    parser.add_argument(
        "--gpus", default=[1, 2], type=counts, metavar="N,M", help="how many at a time"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="a cluster, for one more run")
    parser.add_argument("-o", "--output", type=Path, metavar="RAW.json", help="keep all figures")
    typed = list(sys.argv[1:] if arguments is None else arguments)
    cut = typed.index("--") if "--" in typed else len(typed)
    given = parser.parse_args(typed[:cut])
    flags = [*([given.study] if given.study else []), *typed[cut + 1 :]]
    cores, here = sorted(os.sched_getaffinity(0)), max(1, len(visible_devices()))
    raw = []
    for count in given.gpus:
        share = cores[: max(1, len(cores) * count // max(here, count))]
        raw.append(told([*flags, "--gpus", str(count)], str(count), share))
    if given.ray:
        raw.append(told([*flags, "--ray", given.ray], "Ray", cores))
    if given.output is not None:
        given.output.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    print(table(raw))
    return next((each["code"] for each in raw if each["code"]), 0)


def counts(text: str) -> list[int]:
    """Such as ``1,2,4``."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"give numbers from 1, such as 1,2,4: got {text}")
    return [int(part) for part in parts]


def told(flags: Sequence[str], name: str, cores: Sequence[int]) -> dict[str, Any]:
    """Run once, on these cores; what ``autotune status`` tells of it, and how long it took."""
    with tempfile.TemporaryDirectory(prefix="several-") as folder, on_cores(cores):
        storage = ("--storage", f"sqlite:///{folder}/autotune.db")
        env = {**os.environ, "TRITON_CACHE_DIR": f"{folder}/cache"}
        command = [*AUTOTUNE, "run", *flags, *storage, "--output", f"{folder}/tuned"]
        begun_s = time.monotonic()
        run = subprocess.run(command, env=env, check=False)  # noqa: S603 - our own
        whole_s = time.monotonic() - begun_s
        known = {}
        if run.returncode == 0:
            asked = [*AUTOTUNE, "status", "--json", *storage]
            known = json.loads(subprocess.check_output(asked))  # noqa: S603 - our own
    return {
        "name": name,
        "cores": len(cores),
        "code": run.returncode,
        "whole_s": whole_s,
        "status": known,
    }


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Let programs that are started use these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cells(one: dict[str, Any], first_s: float | None) -> list[str]:
    """A row of the table."""
    status = one["status"]
    run = status["runs"][-1]
    busy = dict(run["busy"])
    compilers = busy.pop("compilers", None)
    busy.pop("writer", None)
    run_s = seconds(run)
    ratios = [each["ratio"] for each in status["studies"] if each.get("ratio")]
    return [
        one["name"],
        str(one["cores"]),
        f"{one['whole_s']:.0f} s",
        f"{run_s:.0f} s",
        str(status["trials"]),
        ", ".join(f"{share:.0%}" for share in busy.values()),
        "" if compilers is None else f"{compilers:.0%}",
        f"{statistics.median(ratios):.2f}x" if ratios else "",
        "" if first_s is None else f"{first_s / run_s:.2f}x",
    ]


def seconds(run: dict[str, Any]) -> float:
    """How long a run took, from the beginning of its search; at least one second."""
    times = (run["started_at"], run["ended_at"] or run["seen_at"])
    begun, ended = (datetime.fromisoformat(text.replace("Z", "+00:00")) for text in times)
    return max(1.0, (ended - begun).total_seconds())


def table(raw: Sequence[dict[str, Any]]) -> str:
    """The table, as Markdown; a run that failed has its exit code alone."""
    good = [each for each in raw if each["code"] == 0]
    first_s = seconds(good[0]["status"]["runs"][-1]) if good else None
    lines = [list(HEAD), ["---"] * len(HEAD)]
    for each in raw:
        if each in good:
            lines.append(cells(each, first_s))
        else:
            lines.append([each["name"], str(each["cores"]), f"failed: {each['code']}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
