"""Which file vLLM opens, and what it does where there is none."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune.choose.couple import couple
from autotune.errors import EntryMissing
from autotune.export import VllmExporter, look_up
from autotune.launch.op import LoraOp, key_of
from autotune.launch.shape import KernelShape
from autotune.plan.study import StudyPlan
from tests.export.examples import H100
from tests.moe import moe_selection, sets_of_studies
from tests.profiles import examples
from tests.vllm.real import Question, RealVllm
from tests.vllm.releases import ROOT

pytestmark = pytest.mark.vllm

KEY = (9, 1, 16, 16, 4096)

#: A name may hold a ``/``, which separates folders, but must not lead out of the folder.
gpu_names = st.text(
    st.sampled_from("NVIDIA H100-80GB/._") | st.characters(codec="utf-8", exclude_categories=["C"]),
    min_size=1,
    max_size=40,
).filter(lambda name: ".." not in name)


def question(op: LoraOp, *, add_inputs: bool | None = None) -> Question:
    key = (*KEY, 14336) if op.is_moe else KEY
    return Question.at(key, op, add_inputs=add_inputs if op is LoraOp.EXPAND else None)


def table_with(op: LoraOp, entry: object) -> dict[str, object]:
    """A table in which every look-up of the op ends at the entry."""
    content = entry
    for _ in op.levels:
        content = {"1": content}
    assert isinstance(content, dict)
    return content


def config(vllm: RealVllm, asked: Question, *, folder: Path | None, gpu: str) -> object:
    (answer,) = vllm.ask([asked], folder=folder, gpu=gpu)
    assert answer.error is None, answer
    return answer.config


@pytest.mark.parametrize("op", LoraOp)
@settings(max_examples=examples(20))
@given(gpu=gpu_names, add_inputs=st.booleans())
@example(gpu="NVIDIA A100-SXM4-80GB", add_inputs=True)
@example(gpu="Quadro T1000/PCIe", add_inputs=False)
def test_vllm_opens_the_file_that_the_op_names(vllm, op, gpu, add_inputs):
    asked = question(op, add_inputs=add_inputs)
    with tempfile.TemporaryDirectory() as name:
        path = Path(f"{name}/{op.file_name(gpu, add_inputs=add_inputs)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table_with(op, {"entry": op.value})))
        assert config(vllm, asked, folder=Path(name), gpu=gpu) == {"entry": op.value}


@pytest.mark.parametrize("op", LoraOp)
@pytest.mark.parametrize("add_inputs", [True, False])
def test_vllm_opens_no_other_file(vllm, op, add_inputs, tmp_path):
    """Its default is what it answers where only the files of everything else are there."""
    own = op.file_name("H100", add_inputs=add_inputs)
    for other in LoraOp:
        for adds in (True, False):
            name = other.file_name("H100", add_inputs=adds)
            if name != own:
                (tmp_path / name).write_text(json.dumps(table_with(other, {"entry": name})))
    asked = question(op, add_inputs=add_inputs)
    (default,) = vllm.defaults([asked])
    assert "block_m" in default.config
    assert config(vllm, asked, folder=tmp_path, gpu="H100") == default.config


@pytest.mark.parametrize("op", LoraOp)
@pytest.mark.parametrize("content", ["{}", "[]", "null", "0", '""', "false"])
def test_a_file_that_holds_nothing_is_as_good_as_none(vllm, op, content, tmp_path):
    asked = question(op, add_inputs=True)
    (tmp_path / op.file_name("H100", add_inputs=True)).write_text(content)
    (default,) = vllm.defaults([asked])
    assert config(vllm, asked, folder=tmp_path, gpu="H100") == default.config
    with pytest.raises(EntryMissing, match="take its default") as caught:
        look_up(json.loads(content), key_of(KEY))
    assert caught.value.vllm_error is None


def moe_question(shape: KernelShape) -> Question:
    """What vLLM's MoE layer asks for (``add_lora_w13``, ``add_lora_w2`` in ``punica_gpu.py``).

    ``hidden_size`` is the model's and ``rank`` the adapter's for all four ops.
    """
    return Question(
        op_type=shape.op.value,
        max_loras=shape.max_loras,
        batch=shape.num_tokens,
        hidden_size=shape.hidden_size,
        rank=shape.rank,
        num_slices=shape.num_slices,
        moe_intermediate_size=shape.intermediate_size,
    )


@settings(max_examples=examples(40))
@given(sets_of_studies(whole=True))
def test_vllm_finds_every_exported_moe_entry_and_one_block_m_for_each_layer(vllm, selections):
    with tempfile.TemporaryDirectory() as name:
        VllmExporter().export(selections, H100, Path(name), merge=False)
        questions = [moe_question(one.shape) for one in selections]
        answers = vllm.ask(questions, folder=Path(name), gpu=H100.gpu)
    chosen = couple(selections)
    assert [answer.config for answer in answers] == [one.config.as_dict() for one in chosen]


@pytest.mark.parametrize("study", ["qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-20b"])
def test_vllm_finds_each_entry_of_the_moe_study_files(vllm, study, tmp_path):
    shapes = StudyPlan.read(ROOT / "studies" / f"{study}.toml").shapes
    selections = [moe_selection(shape, {32: 5.0, 128: 6.0}) for shape in shapes]
    VllmExporter().export(selections, H100, tmp_path, merge=False)

    answers = vllm.ask(map(moe_question, shapes), folder=tmp_path, gpu=H100.gpu)
    assert [answer.config["block_m"] for answer in answers] == [32] * 16
