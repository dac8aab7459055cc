"""Reading traces: what was looked up, what is tuned of it, and files that an enemy wrote."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.study import StudyPlan
from autotune.plan.traced import Trace, read_trace
from tests.mutated import mutated

STUDIES = Path(__file__).parents[2] / "studies"

HEADER = {"schema": "autotune-trace/1", "vllm": "0.26.0", "gpu": "NVIDIA H100 80GB HBM3"}


def looked_up(shape: KernelShape, **changes: Any) -> dict[str, Any]:
    """The line of a look-up of a dense shape, as the plugin writes it."""
    key = shape.lookup_key
    sizes = shape.slice_sizes or (0,) * shape.num_slices
    is_shrink = shape.op is LoraOp.SHRINK
    weights = [
        [shape.max_loras, 1, *((shape.rank, shape.hidden_size) if is_shrink else (n, shape.rank))]
        for n in sizes
    ]
    return {
        "process": "7-1",
        "number": 0,
        "op": shape.op.value,
        "max_loras": key.max_loras,
        "batch": key.m,
        "hidden_size": shape.hidden_size,
        "rank": shape.rank,
        "num_slices": shape.num_slices,
        **({} if is_shrink else {"add_inputs": shape.add_inputs}),
        "lora_a" if is_shrink else "lora_b": weights,
        "dtype": shape.dtype,
        "active_loras": shape.lora_slots,
        "count": 3,
        "layers": 2,
        "when": "start",
        **changes,
    }


def shape_of(**changes: Any) -> KernelShape:
    table = {"op": "expand", "slice_sizes": [4096, 1024, 1024], "rank": 16, "max_loras": 8}
    return KernelShape.from_mapping({**table, "num_tokens": 4, **changes})


SHRINK = KernelShape.from_mapping(
    {"op": "shrink", "hidden_size": 4096, "rank": 16, "max_loras": 8, "num_tokens": 4}
)

#: The line of w2's shrink of a layer with 8 of 32 experts here, whose caller cannot tell of 32.
EXPERTS = {
    "process": "7-1",
    "number": 1,
    "op": "fused_moe_lora_w2_shrink",
    "max_loras": 8,
    "batch": 4,
    "hidden_size": 2048,
    "rank": 16,
    "num_slices": 1,
    "moe_intermediate_size": 768,
    "dtype": "bfloat16",
    "top_k": 4,
    "fully_sharded": False,
    "lora_a": [[8, 8, 16, 768]],
    "lora_b": [[8, 8, 2048, 16]],
    "count": 3,
    "layers": 2,
    "when": "start",
}
W13 = EXPERTS | {
    "number": 2,
    "op": "fused_moe_lora_w13_shrink",
    "num_slices": 2,
    "global_experts": 32,
    "lora_a": [[8, 8, 16, 2048]] * 2,
    "lora_b": [[8, 8, 768, 16]] * 2,
}


def written(folder: Path, *lines: dict[str, Any], header: Any = HEADER) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    return path


def numbered(shapes: Iterable[KernelShape], **changes: Any) -> list[dict[str, Any]]:
    return [looked_up(shape, number=n, **changes) for n, shape in enumerate(shapes)]


def at(kind: KernelShape, *sizes: int) -> list[KernelShape]:
    return [KernelShape.from_mapping(kind.as_dict() | {"num_tokens": size}) for size in sizes]


# ------------------------------------------------------------------ what is read


@st.composite
def dense_shapes(draw: st.DrawFn) -> KernelShape:
    size = st.integers(1, 100_000)
    most = draw(st.integers(1, 64))
    table: dict[str, Any] = {
        "num_tokens": draw(size),
        "rank": draw(st.sampled_from([8, 16, 512])),
        "max_loras": most,
        "dtype": draw(st.sampled_from(["bfloat16", "float16"])),
    }
    if draw(st.booleans()):
        table |= {"op": "shrink", "hidden_size": draw(size), "num_slices": draw(st.integers(1, 6))}
    else:
        sizes = draw(st.lists(size, min_size=1, max_size=6))
        beside = draw(st.booleans())
        table |= {"op": "expand", "slice_sizes": sizes, "add_inputs": not beside}
        table |= {"dual_stream": beside}
    specialized = KernelShape.from_mapping(table | {"specialize_active_lora": True})
    # A grid that has room for all adapters shows nothing.
    is_shown = draw(st.booleans()) and specialized.lora_slots <= most
    return specialized if is_shown else KernelShape.from_mapping(table)


@given(shape=dense_shapes())
def test_a_dense_look_up_is_the_shape_that_it_came_from(shape, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("t"), looked_up(shape))

    assert [each.shape for each in read_trace(path).asked] == [shape]


def test_one_look_up_shows_the_flags_of_all(tmp_path):
    """vLLM looks shrink up alike with LoRA on a stream of its own."""
    beside = shape_of(add_inputs=False)
    experts = {**EXPERTS, "number": 2, "shared_loras": True}
    path = written(tmp_path, looked_up(SHRINK), looked_up(beside, number=1), experts)

    shrink, expand, w2 = (each.shape for each in read_trace(path).asked)

    assert shrink.dual_stream
    assert expand.dual_stream
    assert w2.dual_stream
    assert (shrink.shared_loras, expand.shared_loras, w2.shared_loras) == (False, False, True)


def test_grids_of_several_sizes_are_one_shape_with_a_warning(tmp_path):
    """A server with ``--specialize-active-lora`` captures each batch size several times."""
    grids = [looked_up(SHRINK, number=n, active_loras=n) for n in (1, 2, 4, 9)]

    plan = StudyPlan.of_trace(read_trace(written(tmp_path, *grids)))

    (shape,) = plan.shapes
    assert (shape.specialize_active_lora, shape.active_loras) == (True, 8)
    assert any("1 of 1 entries serve launches for several numbers" in each for each in plan.notes)


def test_without_tensors_the_keys_are_taken(tmp_path):
    line = looked_up(shape_of(slice_sizes=[4096, 4096]))
    del line["lora_b"], line["active_loras"], line["dtype"]

    (asked,) = read_trace(written(tmp_path, line)).asked

    assert asked.shape == shape_of(slice_sizes=[4096, 4096])


def test_a_look_up_without_tensors_has_those_of_the_same_kernel_at_another_size(tmp_path):
    """vLLM may look up sizes that it compiles ahead, and then has no tensors."""
    blind = {**looked_up(shape_of(), number=1, batch=64), "lora_b": None, "dtype": "float32"}

    asked = read_trace(written(tmp_path, blind, looked_up(shape_of()))).asked

    assert [each.shape for each in asked] == at(shape_of(), 64, 4)


def test_experts_elsewhere_are_known_from_the_layers_other_look_up(tmp_path):
    w2, w13 = (each.shape for each in read_trace(written(tmp_path, EXPERTS, W13)).asked)

    assert (w2.num_experts, w2.global_experts) == (8, 32)
    assert (w13.num_experts, w13.global_experts, w13.intermediate_size) == (8, 32, 768)


def test_the_latest_figures_count_and_processes_are_summed(tmp_path):
    later = {"process": "7-1", "number": 0, "count": 40, "layers": 32, "when": "capture"}
    other = looked_up(SHRINK, process="8-1", count=2, when="serving", layers=30)

    trace = read_trace(written(tmp_path, looked_up(SHRINK), other, later))

    (asked,) = trace.asked
    assert (asked.count, asked.layers, asked.when) == (42, 32, "capture")
    assert (trace.release, trace.gpu) == ("0.26.0", "NVIDIA H100 80GB HBM3")


def test_what_autotune_cannot_launch_is_left_out_and_said(tmp_path):
    classes = looked_up(SHRINK, number=1, rank=3, lora_a=[[8, 1, 3, 4096]])
    swapped = EXPERTS | {"number": 2, "hidden_size": 768, "moe_intermediate_size": 2048}
    path = written(
        tmp_path, looked_up(SHRINK), classes, swapped, EXPERTS | {"number": 3, "op": "new"}
    )

    trace = read_trace(path)

    assert [each.shape for each in trace.asked] == [SHRINK]
    ranks, sizes, ops = trace.notes
    assert ranks.startswith(f"{path}: left out")
    assert "line 3, shrink 9/1/4/4096/3: a classifier's head, whose rank is its number" in ranks
    assert "its tensors would be looked up as 8/1/4/16/2048/768" in sizes
    assert "unknown op: got 'new'" in ops


def test_traces_that_were_put_together_are_one(tmp_path):
    path = written(tmp_path, looked_up(SHRINK), HEADER, looked_up(shape_of(), process="9-9"))

    assert len(read_trace(path).asked) == 2


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    path = written(tmp_path, *numbered([SHRINK, shape_of()]))
    path.write_bytes(path.read_bytes()[:-30])

    assert [each.shape for each in read_trace(path).asked] == [SHRINK]


# ------------------------------------------------------------------ what is tuned


def served(folder: Path) -> Trace:
    """A server that captures up to 16 tokens; its logits are no part of the graphs."""
    logits = shape_of(slice_sizes=[128_256])
    captured = numbered(at(shape_of(), 1, 2, 3, 4, 8, 12, 16), when="capture", layers=32)
    start = numbered(at(shape_of(), 512), process="a", layers=32)
    serving = numbered(at(shape_of(), 20, 100, 101), process="b", when="serving", layers=32)
    of_logits = numbered(at(logits, 1, 8, 64), process="c", layers=1)
    return read_trace(written(folder, *captured, *start, *serving, *of_logits))


def test_rows_are_the_sizes_asked_for_thinned_and_doublings_beyond_the_graphs(tmp_path):
    plan = StudyPlan.of_trace(served(tmp_path))

    of_qkv = [each.num_tokens for each in plan.shapes if each.num_slices == 3]
    assert of_qkv == [1, 2, 4, 8, 16, 32, 64, 100, 128, 256, 512]
    assert [each.num_tokens for each in plan.between] == [3, 12]
    assert plan.captured(shape_of()) == at(shape_of(), 1, 2, 3, 4, 8, 12, 16)


def test_what_is_not_captured_runs_over_sampled_tokens(tmp_path):
    plan = StudyPlan.of_trace(served(tmp_path))

    logits = [each for each in plan.shapes if each.num_slices == 1]
    assert max(each.num_tokens for each in logits) == 64
    assert plan.workload.sampled == {logits[0].without_batch}
    assert {each.num_slices: runs for each, runs in plan.runs.items()} == {3: 32, 1: 1}


def test_given_batch_sizes_and_ops_replace_those_of_the_trace(tmp_path):
    trace = read_trace(written(tmp_path, *numbered([SHRINK, shape_of()])))
    plan = StudyPlan.of_trace(trace).override(tokens=[5, 7], ops=[LoraOp.SHRINK])

    assert plan.shapes == tuple(at(SHRINK, 5, 7))
    with pytest.raises(InputError, match=r"no shape of fused_moe_lora_w2_expand in .*t.jsonl"):
        _ = StudyPlan.of_trace(trace).override(ops=[LoraOp.W2_EXPAND]).shapes


def test_the_servers_own_numbers_cannot_be_replaced(tmp_path):
    plan = StudyPlan.of_trace(read_trace(written(tmp_path, looked_up(SHRINK))))

    with pytest.raises(InputError, match=r"t\.jsonl says rank, as the server had it: got 32"):
        plan.override(rank=32)


def test_a_check_looks_up_every_size_that_was_asked_for(tmp_path):
    plan = StudyPlan.of_trace(served(tmp_path))

    assert len(plan.looked_up) == 14
    assert len(plan.override(tokens=[3]).looked_up) == 2


def test_kernels_that_share_an_entry_are_told_by_their_sizes(tmp_path):
    both = [shape_of(), shape_of(slice_sizes=[4096, 512, 512])]
    trace = read_trace(written(tmp_path, *numbered(both)))

    plan = StudyPlan.of_trace(trace)

    assert plan.shapes == (shape_of(),)
    assert "one entry for expand of 16>4096+1024+1024 and of 16>4096+512+512" in plan.notes[-1]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": "4"}, r"t\.jsonl line 2: batch must be a whole number: got '4'"),
        ({"rank": 0}, r"line 2: rank must be at least 1: got 0"),
        ({"batch": 2**31}, r"line 2: batch must be at most 2147483647"),
        ({"op": None}, r"line 2: op must be a text: got None"),
        ({"lora_a": [[1]]}, r"line 2: lora_a\[0\] must be a list of length 3 at least: got \[1\]"),
        ({"count": -1}, r"line 2: count must be at least 0"),
        ({"when": "later"}, r"line 2: when must be 'capture', 'start' or 'serving': got 'later'"),
        ({"lora_a": []}, r"line 2: lora_a must be a list of length 1 at least: got \[\]"),
        ({"dtype": "x" * 201}, "line 2: dtype must have at most 200 characters"),
        ({"active_loras": 99}, "line 2: active_loras must be at most 9, with max_loras 9: got 99"),
        ({"process": 5}, r"line 2: process must be a text: got 5"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_trace(written(tmp_path, looked_up(SHRINK) | changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no look-up: vLLM asked for none"),
        (json.dumps(HEADER).encode() + b"\n", "holds no look-up: vLLM asked for none"),
        (b"#!/bin/sh\n", "is no trace: its first line has no schema 'autotune-trace/1'"),
        (b"\xff\xfe\x00\n" * 9, "is no trace"),
        (b"x" * 70_000, "line 1: longer than 65536 bytes"),
        (b'"autotune-trace/1"\n', "line 1: the whole must be"),
        (b'{"schema": "autotune-trace/1", "gpu": "../../x"}\n', "line 1: gpu must be a GPU's name"),
        (b"\xef\xbb\xbf" + json.dumps(HEADER).encode(), "line 1: not JSON: .* byte-order mark"),
        (("\ufeff" + json.dumps(HEADER)).encode("utf-16-le"), "in UTF-16; save it as UTF-8"),
        (json.dumps(HEADER).encode() + b"\n\n", "line 2: not JSON: it is empty"),
        (json.dumps(HEADER).encode() + b"\nnull\n", "line 2: the whole must be"),
        (json.dumps(HEADER).encode() + b"\n" + b"[" * 9999 + b"\n", "line 2: not JSON"),
    ],
)
def test_what_is_no_trace_is_refused(content, message, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)

    with pytest.raises(InputError, match=message):
        read_trace(path)


@given(cut=st.integers(1, 400))
def test_a_line_that_is_cut_is_called_so(cut, tmp_path_factory):
    path = written(tmp_path_factory.getbasetemp(), looked_up(SHRINK), looked_up(shape_of()))
    header, line, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + line[: min(cut, len(line) - 2)] + b"\n" + last)

    with pytest.raises(InputError, match=r"line 2: not JSON: it is (cut off|broken)") as info:
        read_trace(path)
    assert "control character" not in str(info.value)
    assert "line 1 " not in str(info.value)


def test_experts_have_a_slot_more_in_their_grid_than_in_their_key(tmp_path):
    assert read_trace(written(tmp_path, W13 | {"active_loras": 9})).asked
    with pytest.raises(InputError, match="active_loras must be at most 9, with max_loras 8"):
        read_trace(written(tmp_path, W13 | {"active_loras": 10}))


@pytest.mark.parametrize(("release", "notes"), [("foo", 1), ("0.28.1rc2+cu129", 0), ("", 0)])
def test_a_release_that_is_none_is_said(release, notes, tmp_path):
    trace = read_trace(written(tmp_path, looked_up(SHRINK), header=HEADER | {"vllm": release}))

    assert len(trace.notes) == notes
    assert all("is no release of vLLM that autotune knows: got 'foo'" in n for n in trace.notes)


def test_places_without_a_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", Path("a\0b"), Path("/dev/zero")):
        with pytest.raises(InputError, match="cannot read the trace"):
            read_trace(path)


def test_a_trace_of_what_cannot_be_launched_says_why(tmp_path):
    line = looked_up(SHRINK, rank=3, lora_a=[[8, 1, 3, 4096]])
    with pytest.raises(
        InputError, match=r"no look-up that autotune can launch: line 2, .*a classif"
    ):
        read_trace(written(tmp_path, line))


@given(data=st.data())
def test_hostile_lines_end_in_an_input_error_or_a_sound_plan(data, tmp_path_factory):
    lines: list[Any] = [HEADER, looked_up(SHRINK), W13, EXPERTS, looked_up(shape_of(), number=5)]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(mutated(lines[at]))
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        plan = StudyPlan.of_trace(read_trace(path))
        assert plan.shapes
        assert plan.looked_up
        assert all(line.isprintable() for line in plan.notes)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 - either is right


@given(some=st.binary(max_size=300), place=st.integers(0, 400))
def test_bytes_put_anywhere_end_alike(some, place, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("t"), looked_up(SHRINK))
    content = path.read_bytes()
    path.write_bytes(content[:place] + some + content[place:])
    try:
        assert read_trace(path).asked
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    ("model", "logits"),
    [("llama-3.1-8b", [1024]), ("qwen2.5-7b", []), ("qwen3-30b-a3b", [1024])],  # no LoRA on lm_head
)
def test_a_real_engine_looked_up_the_kernels_that_its_model_has(tmp_path, model, logits):
    real = STUDIES / "recordings" / f"{model}_4-layers_vllm-0.26.0.trace.jsonl.gz"
    file = tmp_path / "trace.jsonl"
    file.write_bytes(gzip.decompress(real.read_bytes()))

    trace = read_trace(file)

    whole = StudyPlan.of_model(str(STUDIES / "models" / f"{model}.json"))
    plan = whole.override(rank=16, max_loras=8, tokens=(16,))
    assert {shape.without_batch for shape in plan.shapes} == set(trace.kinds)
    assert trace.sizes("capture") == [1, 2, 4, 16, 64]
    assert trace.sizes("start") == [*logits, 16384]
