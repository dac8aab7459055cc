"""The command about the tuned files that come with autotune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from autotune.cli.console import out, print_findings, print_written, say_of_server
from autotune.cli.exits import EXIT_CHECK_FAILED, errors_in_one_line
from autotune.cli.flags import (
    AsJson,
    ConfigsFor,
    ConfigsGpu,
    ConfigsOutput,
    ConfigsPath,
    PackSource,
)
from autotune.cli.shape_flags import ShapeFlags, as_typed, takes_shapes
from autotune.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from autotune.export.collection import Collected
    from autotune.export.covered import Coverage, Holding

#: What each kind of look-up is, as the table of a coverage says it.
_MEANINGS = {
    "exact": "tuned for this very shape",
    "other_layer": "the same key, tuned for a layer of other slices or other adapters at once",
    "near": "another batch size of the same sizes: may be slower than what was tuned for it",
    "far": "other sizes, another rank or max_loras: may be slower than vLLM's default",
    "missing": "no file: vLLM takes its default",
    "stopping": "vLLM would stop with an error",
}


@takes_shapes(config=ConfigsFor)
def configs(
    *,
    flags: ShapeFlags,
    gpu: ConfigsGpu = None,
    output: ConfigsOutput = None,
    path: ConfigsPath = False,
    pack: PackSource = None,
    as_json: AsJson = False,
) -> None:
    """List the tuned files that come with autotune, and how much of a model they cover.

    With --for and a model's flags, as shapes takes them: what vLLM finds for each of its look-ups,
    and how to tune what is not there. -o writes the entries that are found into a folder. With
    --pack: what a person with another GPU sends. The exit code is 3 if vLLM would stop.
    """
    _check_flags(output=output, path=path, pack=pack, given=bool(flags.given))
    with errors_in_one_line():
        if pack is not None and output is not None:
            _pack(pack, flags, gpu, output)
            return
        if path:
            out.print(_one_of(gpu).folder, soft_wrap=True)
            return
        if not flags.given:
            _list(gpu, as_json=as_json)
            return
        is_sound = _cover(flags, gpu, output, as_json=as_json)
    if not is_sound:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _check_flags(*, output: Path | None, path: bool, pack: str | None, given: bool) -> None:
    if pack is not None and output is None:
        raise typer.BadParameter("--pack needs -o FILE, the pack to write")
    if pack is not None and path:
        raise typer.BadParameter("--path contradicts --pack; leave one of them out")
    if path and given:
        raise typer.BadParameter("--path is the whole folder: leave the model out, or give -o DIR")
    if output is not None and pack is None and not given:
        raise typer.BadParameter("-o needs --for MODEL, whose entries are written, or --pack")


def _one_of(gpu: str | None) -> Collected:
    """The collection's folder of a GPU: the one named, else the one here, else the only one.

    Raises:
        InputError: The collection has nothing for it, or has several and no GPU is here.
    """
    from autotune.export.check.surroundings import device_here
    from autotune.export.collection import collected, collected_for

    if gpu is None and (device := device_here()) is not None:
        gpu = device.name
    if gpu is not None:
        return collected_for(gpu)
    every = collected()
    if len(every) != 1:
        there = ", ".join(each.gpu for each in every) or "none"
        raise InputError(f"there is no GPU here: give --gpu, one of {there}")
    return every[0]


# ------------------------------------------------------------------ what there is


def _list(gpu: str | None, *, as_json: bool) -> None:
    from autotune.export.collection import collected
    from autotune.export.covered import holdings

    every = collected() if gpu is None else [_one_of(gpu)]
    found = holdings(every)
    if as_json:
        out.print_json(json.dumps([each.as_dict() for each in found]))
        return
    out.print(_table(found))
    models = len({each.model for each in found if each.model})
    out.print()
    out.print(
        f"{models} {'model' if models == 1 else 'models'} in all. Other models take the nearest "
        "entries: ask with --for MODEL before you serve them with these files."
    )


def _table(found: list[Holding]) -> Table:
    from autotune.cli.tables import plain_table

    table = plain_table(
        ("GPU", "model", "kernels", "measured"),
        ("TP", "rank", "max_loras", "shapes", "batch sizes", "median", "least"),
    )
    for each in found:
        table.add_row(
            *(each.gpu, each.model or "-", each.kernels, each.measured_at or "-"),
            *(str(each.tensor_parallel or "-"), str(each.rank), str(each.max_loras)),
            *(str(each.shapes), str(each.batch_sizes)),
            *(f"{ratio:.2f}x" if ratio else "-" for ratio in (each.median, each.least)),
        )
    return table


# ------------------------------------------------------------------ a deployment


def _cover(flags: ShapeFlags, gpu: str | None, output: Path | None, *, as_json: bool) -> bool:
    """Say how much is covered, and write what was asked for; returns whether vLLM would go on."""
    from autotune.export.covered import covered

    plan = flags.plan()
    say_of_server(plan)
    found = covered(_one_of(gpu or (plan.trace and plan.trace.gpu) or None), plan.looked_up)
    if output is not None and not found.taken:
        raise InputError(f"the collection has no entry for it: tune it with {_command(flags)}")
    if as_json:
        out.print_json(json.dumps(found.as_dict() | {"tune_with": _command(flags)}))
    else:
        _print_coverage(found, flags)
    if output is not None:
        _write(found, output, release=plan.server_release, quiet=as_json)
    return not found.stopping


def _print_coverage(found: Coverage, flags: ShapeFlags) -> None:
    from autotune.cli.tables import plain_table

    table = plain_table((), ("look-ups",))
    table.add_column("what vLLM finds", overflow="fold")
    for kind, count in found.counts.items():
        if count:
            table.add_row(str(count), f"{kind.replace('_', ' ')}: {_MEANINGS[kind]}")
    out.print(f"{found.of.gpu}, {sum(found.counts.values())} look-ups:")
    out.print(table)
    if found.stopping:
        out.print("Do not serve with these files alone: vLLM would stop.")
    if not found.is_whole:
        out.print(f"Tune what is not covered: {_command(flags)}", soft_wrap=True)


def _command(flags: ShapeFlags) -> str:
    """The command that tunes a deployment."""
    return " ".join(["autotune", "run", *as_typed(flags)])


def _write(found: Coverage, folder: Path, *, release: str | None, quiet: bool) -> None:
    """Write the entries that are found, and check them."""
    from autotune.export.check import check_exported
    from autotune.export.collection import write_folder

    paths = write_folder(found.taken, folder)
    looked_up = (found.exact, found.other_layer, found.near, found.far)
    shapes = [each.shape for those in looked_up for each in those]
    kept = [shape for shape in shapes if shape.op not in found.left_out]
    report = check_exported(folder, {found.of.gpu: kept}, release=release)
    if not quiet:
        if found.left_out:
            names = ", ".join(sorted(op.value for op in found.left_out))
            out.print(f"Left out, since vLLM would stop: {names}. It takes its defaults there.")
        print_written(paths, folder)
        print_findings(report)


def _pack(source: str, flags: ShapeFlags, gpu: str | None, output: Path) -> None:
    from autotune.cli.packing import pack

    packed = pack(source, flags, gpu, output)
    models = ", ".join(packed.models) or "no model named: name it with --for"
    out.print(
        f"Wrote {output}: {packed.entries} entries of {packed.gpu} ({models}), "
        f"{packed.measurements} measurements"
    )
    out.print("It names the GPU, versions, shapes and the model: no path, no host, no user.")
