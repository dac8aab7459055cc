"""Files of random tensors in the format of safetensors, of any size, with little memory.

The format is eight bytes with the header's length, the header in JSON, and the tensors one behind
the other (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Numbers of a piece at most, and pieces that are drawn at once.
_CHUNK, _AT_ONCE = 2**20, 64


class Random(NamedTuple):
    """A tensor of normally distributed numbers, bfloat16.

    Attributes:
        shape: Its sizes.
        deviation: The standard deviation of its numbers.
    """

    shape: tuple[int, ...]
    deviation: float

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape, dtype=np.int64))


def write_random(path: Path, tensors: Mapping[str, Random], *, seed: int) -> None:
    """Write a file of random tensors.

    Args:
        path: The file; one that is there is replaced.
        tensors: By name.
        seed: The same seed gives the same file.
    """
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + 2 * tensor.size
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pieces = enumerate(
        (min(_CHUNK, tensor.size - begun), tensor.deviation)
        for tensor in tensors.values()
        for begun in range(0, tensor.size, _CHUNK)
    )

    def drawn(piece: tuple[int, tuple[int, float]]) -> bytes:
        number, (count, deviation) = piece
        numbers = np.random.default_rng([seed, number]).standard_normal(count, dtype=np.float32)
        return _bfloat16(numbers * np.float32(deviation))

    with path.open("wb") as file, ThreadPoolExecutor() as pool:
        file.write(struct.pack("<Q", len(text)) + text)
        while some := tuple(islice(pieces, _AT_ONCE)):  # few, so that they need little memory
            file.writelines(pool.map(drawn, some))


def _bfloat16(numbers: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    """The bits of numbers, rounded to the nearest bfloat16: the upper half of a float32."""
    return ((numbers.view(np.uint32) + 0x8000) >> 16).astype("<u2").tobytes()
