"""The flags of ``bench --server``: their types and help texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import parsers
from autotune.cli.parsers import TokenCounts, WholeNumber

#: More than any server runs at once, and repeats that take days.
_MOST_REQUESTS, _MOST_REPEATS = 65_536, 10_000

InServer = Annotated[
    bool,
    typer.Option(
        "--server",
        help="Serve the --model with the installed vLLM, by its defaults, with the folder and by "
        "its defaults again, and compare these. Flags of vllm serve may follow --.",
    ),
]
Requests = Annotated[
    TokenCounts | None,
    typer.Option(
        parser=parsers.counts(1, _MOST_REQUESTS),
        metavar="1,8,64",
        help="With --server: how many requests run at once; 1,8,16,32,64,128 if none.",
    ),
]
InputTokens = Annotated[
    TokenCounts | None,
    typer.Option(
        "--input",
        parser=parsers.counts(1),
        metavar="N,N",
        help="With --server: tokens of a prompt; 64 if none.",
    ),
]
OutputTokens = Annotated[
    TokenCounts | None,
    typer.Option(
        "--output",
        parser=parsers.counts(2),
        metavar="N,N",
        help="With --server: tokens that each request gets; 144 if none.",
    ),
]
Repeats = Annotated[
    WholeNumber | None,
    typer.Option(
        parser=parsers.whole(1, _MOST_REPEATS),
        metavar="N",
        help="With --server: how often each engine serves the requests for their time; 3 if none.",
    ),
]
OwnWeights = Annotated[
    bool,
    typer.Option(
        "--weights", help="With --server: serve the model's own weights, and not random ones."
    ),
]
CheckOutputs = Annotated[
    bool,
    typer.Option(
        "--check-outputs",
        help="With --server: also serve the model with two layers of random weights, and compare "
        "what it computes with float32; the exit code is 3 where the folder is wrong.",
    ),
]
OverHttp = Annotated[
    bool,
    typer.Option(
        "--http",
        help="With --server: run vllm serve, and ask it over HTTP with vLLM's own client, vllm "
        "bench serve; an engine without HTTP if not given.",
    ),
]
AtOnce = Annotated[
    bool,
    typer.Option(
        "--at-once",
        help="With --server: start all servers at once, and let them take turns: quicker, and "
        "drift meets all alike. The GPU has to have room for four copies of the model.",
    ),
]
ServerPython = Annotated[
    str | None,
    typer.Option(
        "--python",
        metavar="FILE",
        help="With --server: the Python that vLLM is installed for; autotune's own if none.",
    ),
]
ServerPlot = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--plot",
        metavar="PLOT.html",
        help="With --server: draw the tokens a second; no drawing if none.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFlags:
    """The values of these flags; None or False where a flag is not given.

    Attributes:
        requests: How many requests run at once.
        input: Tokens of a prompt.
        output: Tokens that each request gets.
        repeats: How often each case is timed.
        weights: Whether the model's own weights are served.
        check_outputs: Whether what the servers compute is compared.
        http: Whether requests come over HTTP.
        at_once: Whether all servers are started at once.
        python: The interpreter that vLLM is installed for.
        plot: The drawing.
    """

    requests: Sequence[int] | None
    input: Sequence[int] | None
    output: Sequence[int] | None
    repeats: int | None
    weights: bool
    check_outputs: bool
    http: bool
    at_once: bool
    python: str | None
    plot: Path | None

    @property
    def given(self) -> list[str]:
        """The flags that were given."""
        return [f"--{name.replace('_', '-')}" for name in self.__slots__ if getattr(self, name)]
