"""The defaults that autotune states are the newest vLLM's."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.measure.kernels.defaults import default_config
from tests.export.examples import qkv_expand, qkv_shrink, shapes
from tests.profiles import examples
from tests.vllm.test_lookup import question_of

pytestmark = pytest.mark.vllm

#: Sizes where the default changes are among the small ones, which Hypothesis would hardly meet.
token_counts = st.integers(1, 300) | st.integers(1, 100_000)


@settings(max_examples=examples(300))
@given(shapes(), token_counts)
@example(qkv_shrink(), 127)
@example(qkv_shrink(), 128)
@example(qkv_expand(slice_sizes=[4096]), 16)
@example(qkv_expand(slice_sizes=[4096, 1024]), 16)
def test_a_shapes_default_is_what_vllm_takes_without_a_folder(newest_vllm, shape, num_tokens):
    shape = dataclasses.replace(shape, num_tokens=num_tokens)
    (answer,) = newest_vllm.defaults([question_of(shape)])
    # max_nreg is None there: no limit, which is how autotune launches too.
    assert answer.config == {**default_config(shape).as_dict(), "max_nreg": None}
