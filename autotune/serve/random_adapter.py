"""Adapters of random weights, as PEFT writes them: ``adapter_config.json`` and its tensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from autotune.plan.models.adapter_tensors import AdaptedLayer
from autotune.serve.tensor_files import Random, write_random

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(
    folder: Path, layers: Sequence[AdaptedLayer], rank: int, *, seed: int, share: Path | None = None
) -> Path:
    """Write an adapter for all of some layers.

    What it adds to a layer is about as large as what the layer itself writes, if that has random
    weights, too.

    Args:
        folder: Is made.
        layers: The layers.
        rank: The adapter's rank.
        seed: Of its numbers.
        share: Another adapter for these layers, whose tensors it shares: large ones fill a disk.
    """
    folder.mkdir(parents=True)
    names = sorted({each.path.rpartition(".")[2] for each in layers})
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names}
    (folder / CONFIG).write_text(json.dumps(table), encoding="utf-8")
    if share is not None:
        os.link(share / WEIGHTS, folder / WEIGHTS)
        return folder
    tensors = {}
    for layer in layers:
        (a, of_a), (b, of_b) = layer.shapes(rank).items()
        # The embedding's A is looked up: one column of it is what a token reads.
        reads = 1 if layer.is_embedding else layer.reads
        tensors[a] = Random(of_a, 1 / math.sqrt(reads))
        tensors[b] = Random(of_b, 1 / math.sqrt(rank))
    write_random(folder / WEIGHTS, tensors, seed=seed)
    return folder
