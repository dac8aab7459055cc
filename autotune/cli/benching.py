"""``autotune bench``: the entries of a folder by themselves, or the folder in a real server."""

from __future__ import annotations

from pathlib import Path

import typer

from autotune.cli.console import err, print_benched, say_benched, say_of_server
from autotune.cli.exits import EXIT_CHECK_FAILED, errors_in_one_line
from autotune.cli.flags import AsJson, Folder, Kernels
from autotune.cli.program import AFTER
from autotune.cli.server_flags import (
    AtOnce,
    CheckOutputs,
    InputTokens,
    InServer,
    OutputTokens,
    OverHttp,
    OwnWeights,
    Repeats,
    Requests,
    ServerFlags,
    ServerPlot,
    ServerPython,
)
from autotune.cli.shape_flags import ShapeFlags, takes_shapes


@takes_shapes()
def bench(  # noqa: PLR0913 - one parameter a flag
    *,
    ctx: typer.Context,
    folder: Folder,
    flags: ShapeFlags,
    kernels: Kernels = None,
    as_json: AsJson = False,
    server: InServer = False,
    requests: Requests = None,
    inputs: InputTokens = None,
    outputs: OutputTokens = None,
    repeats: Repeats = None,
    weights: OwnWeights = False,
    check_outputs: CheckOutputs = False,
    http: OverHttp = False,
    at_once: AtOnce = False,
    python: ServerPython = None,
    plot: ServerPlot = None,
) -> None:
    """Time a folder's entries beside vLLM's defaults on the GPU.

    Without --tokens, token counts between the study's are timed too: vLLM takes the nearest entry.
    With --server whole servers are timed, with the folder and without it. The exit code is 3 if an
    entry or the server is slower than by the default, or does not run.
    """
    of_server = ServerFlags(
        requests=requests,
        input=inputs,
        output=outputs,
        repeats=repeats,
        weights=weights,
        check_outputs=check_outputs,
        http=http,
        at_once=at_once,
        python=python,
        plot=plot,
    )
    after: list[str] = ctx.meta.get(AFTER, [])
    if server:
        from autotune.cli.serving import bench_server

        if kernels is not None or flags.tokens is not None or flags.ops is not None:
            raise typer.BadParameter(
                "--kernels, --tokens and --op are about single kernels, not about a --server; "
                "leave them out"
            )
        if http and at_once:
            raise typer.BadParameter(
                "--at-once starts engines, and not servers over --http; leave one of them out"
            )
        is_sound = bench_server(folder, flags, of_server, after=after, as_json=as_json)
    else:
        if of_server.given or after:
            what = " and ".join(of_server.given) or "what follows --"
            raise typer.BadParameter(f"{what} is about a server; give --server, too")
        is_sound = _bench_entries(folder, flags, kernels, as_json=as_json)
    if not is_sound:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _bench_entries(folder: Path, flags: ShapeFlags, kernels: str | None, *, as_json: bool) -> bool:
    """Time each entry beside the default; whether none is slower."""
    from autotune.export.bench import bench as bench_plan
    from autotune.measure.runners import gpu_runner

    with errors_in_one_line():
        plan = flags.plan().override(kernels=kernels)
        say_of_server(plan)
        with gpu_runner(plan.kernels, err.print) as runner:
            rows = bench_plan(
                plan,
                runner,
                folder,
                ceilings=runner.ceilings(),
                tokens_given=flags.tokens is not None,
                progress=say_benched,
            )
    print_benched(rows, as_json=as_json)
    return not any(row.is_slower for row in rows)
