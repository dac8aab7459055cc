"""What is said of MoE shapes before they are tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.errors import InputError
from autotune.launch.op import MOE_OPS, LoraOp
from autotune.plan.notes import notes
from autotune.plan.study import StudyPlan
from tests.export.examples import H100
from tests.moe import moe_shape

VLLM = replace(H100, provider="vllm", provider_version="0.33.0")


def of_rank(rank: int, *ops: LoraOp, num_tokens: int = 64):
    return [moe_shape(op, rank=rank, num_tokens=num_tokens) for op in ops or MOE_OPS]


def test_nothing_is_said_of_a_dense_study_or_where_vllm_reads_whole_entries():
    assert notes(StudyPlan.quickstart().shapes, VLLM) == []
    assert notes(of_rank(256), VLLM) == []


def test_where_vllm_reads_only_block_m_nothing_else_is_tuned():
    (line,) = notes([*of_rank(16), *of_rank(256)], VLLM)

    assert line.startswith("vLLM 0.33.0 reads only block_m of MoE entries of rank 16 where LoRAs")
    assert "for 4 of 8 shapes nothing else is tuned." in line
    assert line.endswith("vLLM has one kernel for their shrink and expand: both get its time.")


def test_where_a_batch_is_small_vllm_reads_nothing():
    (line,) = notes(of_rank(16, num_tokens=1), VLLM)

    assert "For 4 of them, of small batches, it reads not even block_m." in line


@pytest.mark.parametrize("flag", ["dual_stream", "specialize_active_lora", "shared_loras"])
def test_a_flag_that_the_release_of_the_kernels_lacks_is_refused(flag):
    shapes = [replace(each, **{flag: True}) for each in of_rank(16)]
    assert notes(shapes, VLLM)
    with pytest.raises(InputError, match=r"vLLM 0\.15\.1 has no "):
        notes(shapes, replace(VLLM, provider_version="0.15.1"))


def test_ops_that_a_layer_lacks_are_named():
    (line,) = notes(of_rank(256, LoraOp.W13_SHRINK, LoraOp.W2_SHRINK), VLLM)

    assert line.startswith("Not among the shapes: w13_expand, w2_expand of a MoE layer")
