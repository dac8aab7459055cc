"""The commands about the search itself: contests of samplers, and what searches learn from."""

from __future__ import annotations

from autotune.cli.console import err, out, print_compared, say_compared
from autotune.cli.exits import errors_in_one_line
from autotune.cli.flags import (
    AsJson,
    ComparedEffort,
    ComparedTrials,
    LearnOutput,
    Lookahead,
    Plot,
    Replay,
    Samplers,
    Seeds,
    Sources,
)
from autotune.errors import ExportError


def compare_samplers(  # noqa: PLR0913 - one parameter a flag
    *,
    replay: Replay = None,
    samplers: Samplers = None,
    trials: ComparedTrials = None,
    seeds: Seeds = None,
    lookahead: Lookahead = None,
    effort: ComparedEffort = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Search recorded shapes with every sampler, and tell how soon each comes near the best.

    Without --replay the recording that comes with autotune is searched.
    """
    from autotune.files import try_file
    from autotune.measure.runners import replay_runners
    from autotune.report.plots.contest import write_comparison_plot
    from autotune.search.contest.compare import Comparison, compare, sampler_names
    from autotune.search.contest.curves import by_sampler, by_shape, summaries

    with errors_in_one_line():
        if plot is not None:
            try_file(plot, ExportError, advice="name another file with -o")
        comparison = Comparison.of(
            sampler_names(samplers),
            trials=trials,
            seeds=seeds,
            lookahead=lookahead,
            effort=effort,
        )
        curves = compare(replay_runners(replay or ()), comparison, progress=say_compared)
        if plot is not None:
            groups = {name: by_shape(those) for name, those in by_sampler(curves).items()}
            write_comparison_plot(groups, plot)
            err.print(f"Drew {plot}")
    print_compared(comparison, summaries(curves), as_json=as_json)


def learn(*, sources: Sources, output: LearnOutput) -> None:
    """Thin what was measured into a file that later searches learn from.

    The file goes to run --warm-start. All sources must be of one GPU and one provider of kernels.
    """
    from autotune.search.learn import learn as learn_from

    with errors_in_one_line():
        kept = learn_from(sources, output)
    out.print(f"Wrote {output}: {sum(kept.values())} configurations of {len(kept)} shapes")
    out.print(f"Search with it: autotune run --warm-start {output}")
