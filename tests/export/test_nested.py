"""The text of the JSON files, which is the same bytes however it is made."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.export.nested import as_text

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_values = st.recursive(
    _scalars.filter(lambda value: value not in (math.inf, -math.inf)),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), _values, max_size=4))
def test_the_text_is_what_pythons_own_encoder_indents(content):
    # A surrogate that stands alone cannot be written by either; files hold none.
    assert as_text(content) == json.dumps(content, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_not_written(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_text({"a": [number]})
