"""What vLLM's own loader finds in the tuned files that come with autotune."""

from __future__ import annotations

import pytest

from autotune.export.collection import collected
from autotune.launch.op import LoraOp
from tests.vllm.real import Question

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("one", collected(), ids=lambda each: each.gpu)
def test_vllm_finds_every_shipped_entry(vllm, one):
    questions = [
        Question.at(
            entry.shape.lookup_key,
            entry.shape.op,
            add_inputs=entry.shape.add_inputs if entry.shape.op is LoraOp.EXPAND else None,
        )
        for entry in one.entries
    ]
    answers = vllm.ask(questions, folder=one.folder, gpu=one.gpu)
    assert [answer.config for answer in answers] == [
        entry.config.as_dict() for entry in one.entries
    ]
