"""The note that Optuna Dashboard shows beside a study: the selection and its evidence."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.choose.selection import CONFIDENCE, Selection
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.moe_layer import names_of
from autotune.launch.op import key_text


def note_text(selection: Selection, environment: Environment) -> str:
    """A note in Markdown on a finished shape: the shape, vLLM's default, and the selection.

    Args:
        selection: The shape's own selection, before its MoE layer gets one ``block_m``.
        environment: Where the shape was measured.
    """
    shape = selection.shape
    key = key_text(shape.lookup_key)
    counts = ", ".join(f"{count} {name}" for name, count in selection.outcomes.items())
    lines = [
        f"## {names_of((shape.op,))}, {shape.num_tokens} tokens",
        "",
        _verdict(selection),
        "",
        "| | µs | configuration |",
        "|---|---|---|",
        _row("vLLM's default", selection.default_latency_us, selection.default),
        _row("chosen", selection.latency_us, selection.config),
        "",
        f"- shape: {_values(shape.as_dict())}",
        f"- vLLM looks it up in `{shape.file_name(environment.gpu)}` as `{key}`",
        f"- {selection.trials} trials: {counts}",
    ]
    if selection.replayed is not None:
        lines.append(f"- **replayed, not measured here**: {selection.replayed}")
    if shape.op.is_moe:
        lines.append("- the four ops of its layer get one `block_m`: what is exported may differ")
    return "\n".join(lines) + "\n"


def _verdict(selection: Selection) -> str:
    ratio = selection.ratio
    if ratio is None:
        return "vLLM's default **does not run**."
    if selection.is_default:
        return "Nothing beat vLLM's default: **1.00x**."
    return (
        f"**{ratio.value:.2f}x** as fast as vLLM's default, timed side by side; "
        f"{CONFIDENCE:.0%} interval {ratio.low:.2f} to {ratio.high:.2f}."
    )


def _row(name: str, latency_us: float | None, config: KernelConfig) -> str:
    text = "does not run" if latency_us is None else f"{latency_us:.2f}"
    return f"| {name} | {text} | {_values(config.as_dict())} |"


def _values(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
