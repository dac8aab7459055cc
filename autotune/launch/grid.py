"""The launches of a full grid of configurations, for all of its points at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.rules import MOST_ACCUMULATORS
from autotune.launch.sizes import tiles_bytes


def launches(
    op: LoraOp,
    axes: tuple[tuple[str, tuple[int, ...]], ...],
    forced: tuple[tuple[str, int], ...],
    splits: tuple[tuple[int, int], ...],
    groups: tuple[tuple[tuple[int, int], int], ...],
    memory: tuple[int, int | None],
) -> Mapping[KernelConfig, KernelConfig]:
    """Every launch of a grid that no rule throws out, in a fixed order, each once.

    Args:
        op: The op.
        axes: The values of every parameter, in the order in which they are gone through.
        forced: Parameters that the kernels set themselves.
        splits: For every ``block_k`` the largest ``split_k``; empty where there is none.
        groups: For every ``block_m`` and ``block_n`` the largest ``group_size_m`` that differs from
            the ones below; empty where there is none.
        memory: Size of a weight, and of a block's shared memory or None, bytes.

    Returns:
        The first configuration of each launch, with the configuration that is launched.
    """
    names = [name for name, _ in axes]
    grid = np.meshgrid(*(np.array(each, dtype=np.int64) for _, each in axes), indexing="ij")
    asked: dict[str, Any] = dict(zip(names, (column.ravel() for column in grid), strict=True))
    launched = asked | {name: np.full_like(asked["block_m"], value) for name, value in forced}
    for (block_m, block_n), most in groups:
        alike = (launched["block_m"] == block_m) & (launched["block_n"] == block_n)
        group = np.where(alike, np.minimum(launched["group_size_m"], most), 0)
        launched["group_size_m"] = np.where(alike, group, launched["group_size_m"])
    accumulators = asked["block_m"] * asked["block_n"] // (32 * asked["num_warps"])
    works = accumulators <= MOST_ACCUMULATORS
    for block_k, most in splits:
        works &= (asked["block_k"] != block_k) | (asked["split_k"] <= most)
    value_bytes, limit_bytes = memory
    if limit_bytes is not None:
        works &= tiles_bytes(op, launched, value_bytes) <= limit_bytes
    places = np.flatnonzero(works)
    keys = np.zeros(len(places), dtype=np.int64)  # the same for points that launch alike
    for name in names:
        distinct, which = np.unique(launched[name][places], return_inverse=True)
        keys = keys * len(distinct) + which
    _, firsts = np.unique(keys, return_index=True)
    places = places[np.sort(firsts)]
    own, those = (
        zip(*(table[name][places].tolist() for name in names), strict=True)
        for table in (asked, launched)
    )
    found = {}
    for values, launch in zip(own, those, strict=True):
        config = KernelConfig(**dict(zip(names, values, strict=True)))
        if values != launch:
            found[config] = KernelConfig(**dict(zip(names, launch, strict=True)))
        else:
            found[config] = config
    return found
