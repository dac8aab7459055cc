"""studies/profiled.py, as far as it goes without a GPU."""

from __future__ import annotations

import pytest

from tests.studies.scripts import loaded


@pytest.mark.parametrize("has_embedding", [False, True])
def test_every_kernel_of_a_step_is_told_by_its_layer(has_embedding):
    script = loaded("profiled")
    one_step = [("_lora_expand_kernel", 0.5)] * has_embedding
    for length in (*range(1, 9), 9):  # two layers of four projections, and the logits
        one_step += [
            ("FillFunctor", 0.25),
            ("_lora_shrink_kernel", length),
            ("nvjet_product", 40.0),
            ("_lora_expand_kernel", 10.0 + length),
        ]
    ran = [(name, 0.0, float(length)) for name, length in one_step * script.PROFILED]
    found = script.by_kernel(ran, 2)
    assert found.pop(("embed_tokens", "expand"), None) == ((1, 0.5) if has_embedding else None)
    assert found["lm_head", "shrink"] == (1, 9.25)
    assert found["lm_head", "expand"] == (1, 19.0)
    for place, name in enumerate(script.PROJECTIONS, start=1):
        assert found[name, "shrink"] == (2, place + 2.25)  # of place and place + 4
        assert found[name, "expand"] == (2, place + 12.0)
