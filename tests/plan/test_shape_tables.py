"""``[[shapes]]`` tables: the values that they lack, and the kernels that they describe."""

from __future__ import annotations

from typing import Any

import pytest

from autotune.errors import InputError, StudyFileError
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.shape_tables import kernels_of, missing_value, of_ops, without_values

LORA = {"max_loras": 8, "rank": 16, "dtype": "float16"}
SHRINK: dict[str, Any] = {"op": "shrink", "hidden_size": 4096}
EXPAND: dict[str, Any] = {"op": "expand", "hidden_size": 4096}


def test_a_table_without_a_batch_size_is_a_kernel_of_one_token():
    (kernel,) = kernels_of({3: SHRINK | {"layer": "o"}}, LORA)

    assert kernel.shape == KernelShape.from_mapping({**SHRINK, **LORA, "num_tokens": 1})
    assert (kernel.place, kernel.layer, kernel.runs) == ("[[shapes]] no. 3", "o", 0)
    assert not kernel.has_own_batch


def test_what_a_table_gives_goes_before_lora():
    (kernel,) = kernels_of({1: SHRINK | {"rank": 64, "num_tokens": 7}}, LORA)

    assert (kernel.shape.rank, kernel.shape.num_tokens, kernel.shape.dtype) == (64, 7, "float16")
    assert kernel.has_own_batch


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"op": "shrink", "hidden_size": 0}, "hidden_size must be 1 or more: got 0"),
        (SHRINK | {"num_tokens": [1, 16]}, r"num_tokens must be a whole number: got \[1, 16\]"),
    ],
)
def test_an_impossible_shape_is_refused_by_its_number(table, message):
    with pytest.raises(InputError, match=rf"^\[\[shapes\]\] no. 2: {message}$"):
        kernels_of({1: EXPAND, 2: table}, LORA)


def test_missing_values_are_told_together_with_what_gives_it():
    lacking = missing_value({1: SHRINK | {"rank": 8}, 2: EXPAND}, {"max_loras": 8}, has_tokens=True)
    assert lacking == "[[shapes]] no. 2 has no rank: add rank = 16 to [lora], or give --rank"

    lacking = missing_value({1: SHRINK}, LORA, has_tokens=False)
    assert lacking is not None
    assert lacking.startswith(
        "[[shapes]] no. 1 has no num_tokens: add counts = [1, 16] to [tokens]"
    )

    lacking = missing_value({1: SHRINK}, {}, has_tokens=False)
    assert lacking is not None
    assert "has no max_loras, rank and num_tokens: " in lacking
    assert lacking.endswith(", or give --max-loras, --rank and --tokens")

    assert missing_value({1: SHRINK | {"num_tokens": 1}}, LORA, has_tokens=False) is None


def test_tables_of_some_ops_keep_their_numbers():
    tables = {1: SHRINK, 2: EXPAND, 3: {"op": [1]}}

    assert of_ops(tables, [LoraOp.EXPAND], "s.toml") == {2: EXPAND}
    with pytest.raises(
        StudyFileError, match=r"^--op: no shape of fused_moe_lora_w2_shrink in s.toml; it has shr"
    ):
        of_ops({1: SHRINK}, [LoraOp.W2_SHRINK], "s.toml")


def test_values_are_taken_out_of_every_table():
    assert without_values({1: SHRINK | {"rank": 8}, 2: EXPAND}, {"rank"}) == {1: SHRINK, 2: EXPAND}
