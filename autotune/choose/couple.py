"""From the selections of a MoE layer's ops to the one ``block_m`` that all of them get.

vLLM sorts a layer's tokens once for all four kernels, in steps of one ``block_m``. Entries with
different values of ``block_m`` stop vLLM, or make its numbers wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from autotune.choose.selection import SAME, LayerChoice, Ratio, Selection, select
from autotune.errors import ExportError
from autotune.launch.config import KernelConfig
from autotune.launch.moe_layer import MoeLayer, by_layer, missing_ops, names_of
from autotune.launch.op import MOE_DEFAULTS, MOE_OPS, LoraOp
from autotune.launch.shape import KernelShape

#: The ``block_m`` that vLLM takes for a MoE op without a file, and where it comes from.
DEFAULT_ONLY = {MOE_DEFAULTS["block_m"]: "vLLM's default"}


def couple(selections: Iterable[Selection], *, strict: bool = True) -> list[Selection]:
    """Choose every MoE layer's ``block_m``. Dense selections and the order stay as they are.

    vLLM runs an op that has no entry with the default's ``block_m``. So where a layer lacks some
    of its ops, the others get the default's ``block_m`` too.

    Args:
        selections: Selections of one environment.
        strict: Whether a layer without a common ``block_m`` is an error. If not, the layer's ops
            keep their own choices.

    Raises:
        ExportError: No ``block_m`` works for all of a layer's ops, and ``strict`` is true.
    """
    selections = list(selections)
    chosen: dict[KernelShape, Selection] = {}
    for those in by_layer(selections, lambda one: one.shape).values():
        whole = not missing_ops(one.shape for one in those)
        with suppress(*(() if strict else (ExportError,))):
            coupled = couple_layer(those, allowed=None if whole else DEFAULT_ONLY)
            chosen |= {one.shape: one for one in coupled}
    return [chosen.get(one.shape, one) for one in selections]


def couple_layer(
    selections: Sequence[Selection], *, allowed: Mapping[int, str] | None = None
) -> list[Selection]:
    """Give a layer's ops the ``block_m`` at which the sum of their latencies is smallest.

    The default's ``block_m`` wins unless another is faster beyond the noise.

    Args:
        selections: The selections of one layer's ops. Their samples say which ``block_m`` works.
        allowed: The values of ``block_m`` to choose from, each with where it comes from; None for
            any value.

    Raises:
        ExportError: No ``block_m`` was measured to work for all of the ops.
    """
    ordered = sorted(selections, key=lambda one: (MOE_OPS.index(one.shape.op), one.shape.label))
    common = set.intersection(*(_values(one) for one in ordered))
    options = {
        block_m: [_best_at(block_m, one) for one in ordered]
        for block_m in sorted(common)
        if allowed is None or block_m in allowed
    }
    if not options:
        raise _none_works(ordered, allowed)
    block_m = _choose(ordered, options)
    layer = _layer_choice(ordered, block_m, options[block_m])
    return [
        replace(one, config=config, ratio=_ratio(one, config), layer=layer)
        for one, config in zip(ordered, options[block_m], strict=True)
    ]


def _values(selection: Selection) -> set[int]:
    """The values of ``block_m`` that an op may get; one where its row was exchanged."""
    if selection.exchanged is not None:
        return {selection.config.block_m}
    return {config.block_m for config in selection.choosable_us}


def _best_at(block_m: int, selection: Selection) -> KernelConfig:
    """The configuration with this ``block_m`` that ``select`` chooses for an op."""
    if selection.exchanged is not None:
        return selection.config
    samples = {c: s for c, s in selection.choosable_us.items() if c.block_m == block_m}
    return select(selection.default, samples)[0]


def _choose(selections: Sequence[Selection], options: dict[int, list[KernelConfig]]) -> int:
    def sum_us(block_m: int) -> float:
        pairs = zip(selections, options[block_m], strict=True)
        return sum(statistics.median(one.samples_us[config]) for one, config in pairs)

    best = min(options, key=sum_us)
    usual = {one.default.block_m for one in selections}
    if best in usual or not usual <= options.keys() or len(usual) > 1:
        return best
    (default,) = usual
    pairs = zip(selections, options[default], options[best], strict=True)
    ratio = Ratio.of_sums([(one.samples_us[a], one.samples_us[b]) for one, a, b in pairs])
    return best if ratio.verdict == "faster" else default


def _layer_choice(
    selections: Sequence[Selection], block_m: int, configs: Sequence[KernelConfig]
) -> LayerChoice:
    ops: tuple[LoraOp, ...] = tuple(dict.fromkeys(one.shape.op for one in selections))
    pairs = list(zip(selections, configs, strict=True))
    if any(one.default not in one.samples_us for one in selections):
        ratio = None
    elif all(one.default == config for one, config in pairs):
        ratio = SAME
    else:
        ratio = Ratio.of_sums(
            [(one.samples_us[one.default], one.samples_us[c]) for one, c in pairs]
        )
    return LayerChoice(block_m=block_m, ops=ops, ratio=ratio)


def _ratio(selection: Selection, config: KernelConfig) -> Ratio | None:
    default_us = selection.samples_us.get(selection.default)
    if default_us is None:
        return None
    if config == selection.default:
        return SAME
    return Ratio.of(default_us, selection.samples_us[config])


def _none_works(selections: Sequence[Selection], allowed: Mapping[int, str] | None) -> ExportError:
    label = MoeLayer.of(selections[0].shape).label
    measured = "; ".join(
        f"{names_of([one.shape.op])} with {_listed({c.block_m for c in one.choosable_us})}"
        for one in selections
    )
    wanted = "one block_m"
    if allowed:
        fixed = ", ".join(f"{block_m} ({whose})" for block_m, whose in sorted(allowed.items()))
        wanted = f"block_m {fixed} with its other ops"
    return ExportError(
        f"the ops of the MoE layer {label} must share {wanted}, but ran only with other values: "
        f"got {measured}; tune all four ops together, with more trials or wider axes"
    )


def _listed(values: Iterable[int]) -> str:
    return "/".join(map(str, sorted(values)))
