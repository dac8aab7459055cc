"""vLLM's look-up, stated anew: examples worked out by hand from vLLM's source.

``tests/vllm`` asks real releases.
"""

from typing import Any

import pytest

from autotune.errors import EntryMissing
from autotune.export import look_up
from autotune.launch.op import key_of

ENTRY = {"block_m": 16}


def _table(
    tokens: tuple[str, ...] = ("1", "16"), max_loras: tuple[str, ...] = ("9",)
) -> dict[str, Any]:
    below_slices = {m: {"16": {"4096": {"block_m": int(m)}}} for m in tokens}
    return {loras: {"3": below_slices} for loras in max_loras}


def test_the_exact_key_is_taken_where_it_is_there():
    assert look_up(_table(), key_of((9, 3, 16, 16, 4096))) == (
        {"block_m": 16},
        (9, 3, 16, 16, 4096),
    )


def test_the_nearest_key_is_taken_however_far_it_is():
    assert look_up(_table(), key_of((2, 3, 9000, 16, 99))).path == (9, 3, 16, 16, 4096)


@pytest.mark.parametrize(("tokens", "first"), [(("1", "17"), 1), (("17", "1"), 17)])
def test_of_two_keys_equally_near_the_first_in_the_file_is_taken(tokens, first):
    assert look_up(_table(tokens), key_of((9, 3, 9, 16, 4096))).leaf == {"block_m": first}


def test_the_sixth_level_of_a_moe_op_takes_the_nearest_key_too():
    table = {"8": {"2": {"1": {"16": {"2880": {"5760": ENTRY}}}}}}
    assert look_up(table, key_of((8, 2, 1, 16, 2880, 5888))) == (ENTRY, (8, 2, 1, 16, 2880, 5760))


def test_a_key_is_compared_as_int_reads_it_where_the_plain_spelling_is_absent():
    table = {" 9": {"3": {"1_6": {"+16": {"04096": ENTRY}}}}}
    assert look_up(table, key_of((9, 3, 16, 16, 4096))) == (ENTRY, (9, 3, 16, 16, 4096))


@pytest.mark.parametrize("nothing", [{}, None, [], 0, False])
def test_an_exact_key_with_nothing_below_it_gives_way_to_another_spelling(nothing):
    table = {"9": {"3": {"016": {"16": {"4096": ENTRY}}, "16": nothing}}}
    assert look_up(table, key_of((9, 3, 16, 16, 4096))).leaf == ENTRY


def test_an_exact_key_with_nothing_below_it_does_not_give_way_to_another_number():
    table = {"9": {"3": {"16": {"15": {"4096": ENTRY}, "16": {}}}}}
    with pytest.raises(EntryMissing, match="vLLM would stop looking for 4096: ") as caught:
        look_up(table, key_of((9, 3, 16, 16, 4096)))
    assert caught.value.vllm_error == "ValueError"


@pytest.mark.parametrize("leaf", [{}, [], "", 0, False, "16", [16]])
def test_any_entry_but_null_is_found(leaf):
    table = {"9": {"3": {"16": {"16": {"4096": leaf}}}}}
    assert look_up(table, key_of((9, 3, 16, 16, 4096))).leaf == leaf


def test_null_for_an_entry_stops_vllm():
    table = {"9": {"3": {"16": {"16": {"4096": None}}}}}
    with pytest.raises(EntryMissing, match="the entry under 9/3/16/16/4096 is null") as caught:
        look_up(table, key_of((9, 3, 16, 16, 4096)))
    assert caught.value.vllm_error == "AssertionError"


def test_a_number_of_slices_that_is_not_there_stops_vllm():
    with pytest.raises(
        EntryMissing, match="vLLM would stop: no entry for num_slices 2, only 3"
    ) as caught:
        look_up(_table(), key_of((9, 2, 16, 16, 4096)))
    assert caught.value.vllm_error == "KeyError"


@pytest.mark.parametrize("spelling", ["03", " 3", "+3"])
def test_a_number_of_slices_is_found_in_its_plain_spelling_only(spelling):
    table = {"9": {spelling: _table()["9"]["3"]}}
    with pytest.raises(EntryMissing, match="no entry for num_slices 3"):
        look_up(table, key_of((9, 3, 16, 16, 4096)))


def test_a_key_that_is_no_integer_stops_vllm_only_where_the_exact_one_is_absent():
    table = _table(max_loras=("9", "made by hand"))
    assert look_up(table, key_of((9, 3, 16, 16, 4096))).leaf == {"block_m": 16}
    with pytest.raises(EntryMissing, match="vLLM would stop looking for 5: invalid literal") as no:
        look_up(table, key_of((5, 3, 16, 16, 4096)))
    assert no.value.vllm_error == "ValueError"


def test_a_moe_file_without_its_sixth_level_stops_vllm():
    table = {"8": {"2": {"1": {"16": {"2880": {"BLOCK_SIZE_M": 16}}}}}}
    with pytest.raises(EntryMissing, match=r"looking for 5760: .*'BLOCK_SIZE_M'") as caught:
        look_up(table, key_of((8, 2, 1, 16, 2880, 5760)))
    assert caught.value.vllm_error == "ValueError"


def test_an_empty_level_stops_vllm():
    with pytest.raises(EntryMissing, match="vLLM would stop looking for 16") as caught:
        look_up({"9": {"3": {}}}, key_of((9, 3, 16, 16, 4096)))
    assert caught.value.vllm_error == "ValueError"


def test_an_empty_file_lets_vllm_take_its_default():
    with pytest.raises(EntryMissing, match="take its default: the file holds nothing") as caught:
        look_up({}, key_of((9, 3, 16, 16, 4096)))
    assert caught.value.vllm_error is None


@pytest.mark.parametrize(
    ("table", "vllm_error"),
    [
        ([1], "AttributeError"),
        ({"9": [1]}, "TypeError"),
        ({"9": {"3": 5}}, "AttributeError"),
        ({"9": {"3": {"16": "x"}}}, "AttributeError"),
        ({"9": {"3": {"16": {"16": None}}}}, "AttributeError"),
    ],
)
def test_what_is_no_table_stops_vllm(table, vllm_error):
    with pytest.raises(EntryMissing, match=r"vLLM would stop: a .* where the key .* should") as no:
        look_up(table, key_of((9, 3, 16, 16, 4096)))
    assert no.value.vllm_error == vllm_error
