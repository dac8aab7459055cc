"""At which batch sizes a server launches each kernel, before its first request and afterwards."""

from __future__ import annotations

from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.plan.batches import Batches
from autotune.plan.serving import of_batches, of_trace
from autotune.plan.study import StudyPlan
from autotune.plan.traced import read_trace
from autotune.plan.workload import Kernel, Workload
from tests.plan.test_traced import at, numbered, served, shape_of, written

BATCHES = Batches.of(2048, 20)


def shrink(num_tokens: int = 1) -> KernelShape:
    table = {"op": "shrink", "num_tokens": num_tokens, "hidden_size": 4096, "rank": 16}
    return KernelShape.from_mapping(table | {"max_loras": 8})


def sizes(*sampled: bool) -> WarmedSizes:
    kernels = [Kernel(place="", shape=shrink(), is_sampled=each) for each in sampled]
    workload = Workload.of(kernels, [1], most_sampled=20, may_share=True)
    return of_batches(BATCHES, workload, shrink())


def test_a_server_launches_its_graphs_and_the_largest_step_at_its_start():
    found = sizes(False)
    assert found == WarmedSizes((1, 2, 4, 8, 16, 20, 24, 32, 40, 2048), (range(41, 2049),))


def test_experts_get_the_batches_of_all_servers_that_share_them():
    found = of_batches(
        BATCHES, Workload(launched=(), sampled=frozenset()), shrink(), gathered_from=2
    )
    assert (found.warmed[:3], found.warmed[-1]) == ((2, 4, 8), 4096)
    assert found.later == (range(82, 4097),)


def test_logits_are_launched_at_the_start_for_all_sequences_and_later_for_any():
    assert sizes(True) == WarmedSizes((20,), (range(1, 21),))


def test_a_kernel_that_logits_share_may_be_launched_later_at_any_size_of_theirs():
    assert sizes(True, False).later == (range(41, 2049), range(1, 21))


def test_a_trace_says_what_its_server_launched(tmp_path):
    trace = served(tmp_path)
    assert of_trace(trace, shape_of().without_batch) == WarmedSizes(
        (1, 2, 3, 4, 8, 12, 16, 512), (range(17, 513),)
    )
    logits = shape_of(slice_sizes=[128_256]).without_batch
    assert of_trace(trace, logits) == WarmedSizes((1, 8, 64), (range(1, 65),))
    plan = StudyPlan.of_trace(trace)
    assert plan.served == {kind: plan.warmed(kind) for kind in trace.kinds}


def test_a_size_below_the_graphs_that_came_later_may_come_again(tmp_path):
    captured = numbered(at(shape_of(), 1, 16), when="capture")
    later = numbered(at(shape_of(), 5, 20), process="b", when="serving")
    trace = read_trace(written(tmp_path, *captured, *later))
    assert of_trace(trace, shape_of().without_batch).later == (range(5, 21),)


def test_the_shrink_of_traced_logits_may_come_at_any_size_of_theirs(tmp_path):
    o_proj = shape_of(slice_sizes=[4096])
    logits = shape_of(slice_sizes=[128_256])
    captured = numbered([*at(shrink(), 1, 16), *at(o_proj, 1, 16)], when="capture")
    trace = read_trace(written(tmp_path, *captured, *numbered(at(logits, 8), process="b")))
    assert of_trace(trace, shrink()).later == (range(17, 17), range(1, 9))
    assert of_trace(trace, o_proj.without_batch).later == (range(17, 17),)


def test_a_server_is_not_known_where_shapes_are_given_by_hand():
    shape = shrink(16)
    assert StudyPlan.of_shapes([shape]).served == {}
    auto = StudyPlan.of_shapes([shape]).override(tokens="auto")
    assert list(auto.served) == [shape.without_batch]
