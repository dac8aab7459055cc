"""Our look-up is vLLM's: both are asked, in the files of our exporter and in Hypothesis's."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import EntryMissing
from autotune.export import Found, VllmExporter, look_up, read_table
from autotune.launch.op import LoraOp, key_of
from autotune.launch.shape import KernelShape
from tests.export.examples import H100, selection_lists
from tests.profiles import examples
from tests.vllm.real import Answer, Question, RealVllm
from tests.vllm.tables import cases, keys_in

GPU = "NVIDIA H100 80GB HBM3"

#: Per file that vLLM may open for that GPU: the op, whether it adds, and the levels of its keys.
FILES = {
    "NVIDIA_H100_80GB_HBM3_SHRINK.json": (LoraOp.SHRINK, None, 5),
    "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json": (LoraOp.EXPAND, True, 5),
    "NVIDIA_H100_80GB_HBM3_EXPAND_FALSE.json": (LoraOp.EXPAND, False, 5),
    "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_W13_SHRINK.json": (LoraOp.W13_SHRINK, None, 6),
    "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_W13_EXPAND.json": (LoraOp.W13_EXPAND, None, 6),
    "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_W2_SHRINK.json": (LoraOp.W2_SHRINK, None, 6),
    "NVIDIA_H100_80GB_HBM3_FUSED_MOE_LORA_W2_EXPAND.json": (LoraOp.W2_EXPAND, None, 6),
}


def question_of(shape: KernelShape) -> Question:
    """What vLLM asks for when it launches a dense op (``lora_shrink_op``, ``lora_expand_op``)."""
    return Question(
        op_type=shape.op.value,
        max_loras=shape.max_loras + 1,
        batch=shape.num_tokens,
        hidden_size=shape.hidden_size,
        rank=shape.rank,
        num_slices=shape.num_slices,
        add_inputs=shape.add_inputs if shape.op is LoraOp.EXPAND else None,
    )


def ours(table: Any, key: tuple[int, ...]) -> Found | EntryMissing:
    """What our look-up ends at."""
    try:
        return look_up(table, key_of(key))
    except EntryMissing as error:
        return error


def assert_same(end: Found | EntryMissing, theirs: Answer, default: Answer) -> None:
    """Our look-up's end is vLLM's: the same entry, error for error, or its default."""
    if isinstance(end, Found):
        # As text: to Python, true is 1 and 0.0 is 0.
        assert json.dumps(theirs.config) == json.dumps(end.leaf), theirs
        assert theirs.error is None
    elif end.vllm_error is None:
        assert theirs == default
    else:
        assert theirs.error == end.vllm_error, (str(end), theirs)


def assert_agrees(
    vllm: RealVllm, folder: Path, name: str, table: Any, asked: list[tuple[int, ...]]
) -> None:
    """Both look-ups end alike in one file."""
    op, add_inputs, _ = FILES[name]
    questions = [Question.at(key, op, add_inputs=add_inputs) for key in asked]
    answers = vllm.ask(questions, folder=folder, gpu=GPU)
    for key, theirs, default in zip(asked, answers, vllm.defaults(questions), strict=True):
        assert_same(ours(table, key), theirs, default)


# ------------------------------------------------------------------ files of our exporter


@pytest.mark.vllm
@settings(max_examples=examples(60))
@given(selection_lists())
def test_vllm_finds_every_exported_configuration(vllm, chosen):
    with tempfile.TemporaryDirectory() as name:
        VllmExporter().export(chosen, H100, Path(name), merge=False)
        questions = [question_of(one.shape) for one in chosen]
        answers = vllm.ask(questions, folder=Path(name), gpu=H100.gpu)
    assert [answer.config for answer in answers] == [one.config.as_dict() for one in chosen]


@pytest.mark.vllm
@settings(max_examples=examples(60))
@given(selection_lists(), st.data())
def test_whatever_else_is_looked_up_in_an_export_both_find_the_same(vllm, chosen, data):
    with tempfile.TemporaryDirectory() as folder:
        for path in VllmExporter().export(chosen, H100, Path(folder), merge=False)[:-1]:
            table = read_table(path, levels=5) or {}
            asked = data.draw(st.lists(keys_in(table, 5), min_size=1, max_size=8), path.name)
            assert_agrees(vllm, Path(folder), path.name, table, asked)


# ------------------------------------------------------------------ files of any content


@pytest.mark.vllm
@pytest.mark.parametrize("levels", [5, 6])
@settings(max_examples=examples(250))
@given(st.data())
def test_in_a_file_of_any_content_both_end_alike(vllm, levels, data):
    content, asked = data.draw(cases(levels))
    text = json.dumps(content)
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name, (_, _, deep) in FILES.items() if deep == levels):
            (Path(folder) / name).write_text(text)
            assert_agrees(vllm, Path(folder), name, json.loads(text), asked)


@settings(max_examples=examples(300), derandomize=True, database=None)
@given(cases(5) | cases(6))
def test_the_keys_of_a_look_up_are_those_above_the_entry_that_it_finds(case):
    content, asked = case
    for key in asked:
        end = ours(content, key)
        if isinstance(end, Found) and isinstance(end.leaf, dict) and "at" in end.leaf:
            assert end.path == tuple(map(int, end.leaf["at"]))


@pytest.mark.slow
def test_the_contents_reach_every_end_of_a_look_up():
    """An end that no content reaches would not be compared with vLLM."""
    ends: Counter[str] = Counter()

    @settings(max_examples=400, derandomize=True, database=None)
    @given(cases(5) | cases(6))
    def count(case):
        content, asked = case
        for key in asked:
            ends.update(kinds_of_end(content, key))

    count()
    assert set(ends) >= set(KINDS_OF_END), dict(ends)


#: Every way in which a look-up can end, and in which it can take a key.
KINDS_OF_END = (
    *("default", "AttributeError", "AssertionError", "KeyError", "TypeError", "ValueError"),
    *("entry", "what is no entry", "exact", "nearest", "far", "other spelling"),
    *("tie", "tie that the larger number wins", "empty under the exact key"),
)


def kinds_of_end(content: Any, key: tuple[int, ...]) -> set[str]:
    """What can be said of how a look-up ends."""
    end = ours(content, key)
    if isinstance(end, EntryMissing):
        return {end.vllm_error or "default"}
    if not isinstance(end.leaf, dict) or "at" not in end.leaf:
        return {"what is no entry"}
    kinds = {"entry"}
    for wanted, taken in zip(key, end.leaf["at"], strict=True):
        kinds |= kinds_of_step(content, wanted, taken)
        content = content[taken]
    return kinds


def kinds_of_step(table: dict[str, Any], wanted: int, taken: str) -> set[str]:
    """What can be said of the key that is taken of a table."""
    if str(wanted) == taken:
        return {"exact"}
    if int(taken) == wanted:
        return {"other spelling"} | (
            {"empty under the exact key"} if str(wanted) in table else set()
        )
    kinds = {"nearest"}
    away = abs(int(taken) - wanted)
    if away > 1000:
        kinds.add("far")
    rivals = [int(key) for key in table if key != taken and abs(int(key) - wanted) == away]
    if rivals:
        kinds.add("tie")
    if any(rival < int(taken) for rival in rivals):
        kinds.add("tie that the larger number wins")
    return kinds
