"""How well does an entry of one rank, max_loras, batch size, model or release serve another?

    python studies/elsewhere.py

The recordings ``apart`` hold the same four layers at two batch sizes, apart in one thing each. Of
every layer the configuration that is fastest somewhere else is looked up where it is to serve. The
table is that of ``docs/configs.md``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.measure.replay import ReplayRunner

RECORDINGS = Path(__file__).parent / "recordings"

HEAD = (
    "entries of",
    "serve",
    "shapes",
    "own gain",
    "their gain",
    "slower than own",
    "at worst",
    "slower than vLLM's default",
)

#: Sizes of Qwen3-32B's layers, and those of the same layers of Llama-3.1-8B.
OTHER_MODEL = {5120: 4096, 25600: 14336}

#: Latencies of the configurations that work, microseconds per launch, and vLLM's default.
Timed = tuple[Mapping[KernelConfig, float], KernelConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An entry from elsewhere.

    Attributes:
        own: How many times as fast as vLLM's default the best configuration is.
        gain: How many times as fast as vLLM's default the entry is.
    """

    own: float
    gain: float

    @property
    def loss(self) -> float:
        """By what share of its latency the best configuration is passed; 0 for the best itself."""
        return self.own / self.gain - 1


def timed(recording: ReplayRunner) -> dict[KernelShape, Timed]:
    """All shapes of a recording."""
    return {
        shape: (
            {
                one.config: one.latency_us
                for one in recording.recorded(shape)
                if one.outcome is Outcome.OK
            },
            recording.space(shape, {}).default,
        )
        for shape in recording.shapes
    }


def served(there: Timed, here: Timed) -> Served:
    """What the fastest of ``there`` does ``here``, of the configurations recorded in both."""
    (source, _), (target, default) = there, here
    entry = min((config for config in source if config in target), key=lambda each: source[each])
    return Served(own=target[default] / min(target.values()), gain=target[default] / target[entry])


def server(shape: KernelShape) -> tuple[str, KernelShape]:
    """What a shape is apart in from Llama-3.1-8B at rank 16 with 8 adapters, and that one's shape.

    Empty for nothing.
    """
    usual = replace(shape, rank=16, max_loras=8, active_loras=8)
    if shape.hidden_size in OTHER_MODEL:
        return "Qwen3-32B", replace(usual, hidden_size=OTHER_MODEL[shape.hidden_size])
    if shape.rank != usual.rank:
        return f"rank {shape.rank}", usual
    return ("" if shape.max_loras == 8 else f"max_loras {shape.max_loras}"), usual


def pairs(
    apart: Mapping[KernelShape, Timed], older: Mapping[KernelShape, Timed]
) -> Iterator[tuple[str, str, Timed, Timed]]:
    """Two servers by name, and a shape as each of them has it."""
    names = {"rank 64": "rank 16", "Qwen3-32B": "Llama-3.1-8B"}
    for shape, those in apart.items():
        name, usual = server(shape)
        if name:
            yield names.get(name, "max_loras 8"), name, apart[usual], those
        elif shape.num_tokens == 16:
            yield "16 tokens", "256 tokens", those, apart[replace(shape, num_tokens=256)]
    for shape, those in older.items():
        yield "vLLM 0.33.0", "vLLM 0.28.0", apart[shape], those


def rows(
    apart: Mapping[KernelShape, Timed], older: Mapping[KernelShape, Timed]
) -> dict[tuple[str, str], list[Served]]:
    """Whose entries serve whom, and how, shape by shape."""
    found: dict[tuple[str, str], list[Served]] = {}
    for one, other, ours, theirs in pairs(apart, older):
        found.setdefault((one, other), []).append(served(ours, theirs))
        found.setdefault((other, one), []).append(served(theirs, ours))
    return found


def cells(names: tuple[str, str], those: Sequence[Served]) -> list[str]:
    """A row of the table."""
    losses = [one.loss for one in those]
    return [
        *names,
        str(len(those)),
        f"{statistics.median(one.own for one in those):.2f}x",
        f"{statistics.median(one.gain for one in those):.2f}x",
        f"{100 * statistics.median(losses):.0f} %",
        f"{100 * max(losses):.0f} %",
        str(sum(one.gain < 1 for one in those)),
    ]


def table() -> str:
    """The table, as Markdown."""
    apart, older = (
        timed(ReplayRunner([RECORDINGS / f"{name}_h100.jsonl.gz"]))
        for name in ("apart", "apart_0.28.0")
    )
    lines = [HEAD, ["---"] * len(HEAD), *(cells(*row) for row in rows(apart, older).items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
