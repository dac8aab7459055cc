"""vLLM's look-up, stated anew: examples worked out by hand from VLLM's source."""

from typing import Any

import pytest

from autotune.errors import ExportError
from autotune.export import look_up


def _table(
    tokens: tuple[str, ...] = ("1", "16"), max_loras: tuple[str, ...] = ("9",)
) -> dict[str, Any]:
    below_slices = {m: {"16": {"4096": {"block_m": int(m)}}} for m in tokens}
    return {loras: {"3": below_slices} for loras in max_loras}


def test_the_exact_key_is_taken_where_it_is_there():
    assert look_up(_table(), (9, 3, 16, 16, 4096)) == ({"block_m": 16}, (9, 3, 16, 16, 4096))


def test_the_nearest_key_is_taken_however_far_it_is():
    assert look_up(_table(), (2, 3, 9000, 16, 99)).path == (9, 3, 16, 16, 4096)


@pytest.mark.parametrize(("tokens", "first"), [(("1", "17"), 1), (("17", "1"), 17)])
def test_of_two_keys_equally_near_the_first_in_the_file_is_taken(tokens, first):
    assert look_up(_table(tokens), (9, 3, 9, 16, 4096)).leaf == {"block_m": first}


def test_a_number_of_slices_that_is_not_there_stops_vllm():
    with pytest.raises(ExportError, match="vLLM would stop: no entry for num_slices 2, only 3"):
        look_up(_table(), (9, 2, 16, 16, 4096))


def test_a_key_that_is_no_integer_stops_vllm_only_where_the_exact_one_is_absent():
    table = _table(max_loras=("9", "made by hand"))
    assert look_up(table, (9, 3, 16, 16, 4096)).leaf == {"block_m": 16}
    with pytest.raises(ExportError, match="vLLM would stop looking for 5: invalid literal"):
        look_up(table, (5, 3, 16, 16, 4096))


def test_an_empty_level_stops_vllm():
    with pytest.raises(ExportError, match="vLLM would stop looking for 9"):
        look_up({}, (9, 3, 16, 16, 4096))
