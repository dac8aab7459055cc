"""A folder's entries against vLLM's defaults, on recordings and on a fake device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.choose.selection import Ratio
from autotune.cli.tables import bench_cells, bench_table, tokens_text, verdict_counts
from autotune.errors import InputError
from autotune.export import VllmExporter
from autotune.export.bench import DOES_NOT_RUN, Benched, bench, between_counts, find_entry
from autotune.launch.config import KernelConfig
from autotune.launch.op import DenseKey, LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure import Comparison, EnoughRule, Runner
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.replay import ReplayRunner
from autotune.measure.roofline import floor_us
from autotune.plan.study import StudyPlan
from tests.export.examples import selection
from tests.measure.cuda.handlers import CEILINGS, LIES, FakeDevice
from tests.moe import moe_config, moe_shape
from tests.recordings import BEST, EXPAND, SHRINK, write_recording

STUDY = """
[lora]
max_loras = 8
rank = 16
[tokens]
counts = [1, 16]
[[shapes]]
op = "shrink"
layer = "qkv"
hidden_size = 4096
num_slices = 3
"""

#: vLLM's default as the fake device has it; it takes as many microseconds as ``block_k`` says.
FAKE_DEFAULT = {"block_m": 32, "block_n": 16, "block_k": 64, "split_k": 8, "group_size_m": 8} | {
    "num_warps": 4,
    "num_stages": 2,
}


def exported(folder: Path, runner: Runner, *entries: tuple[KernelShape, dict[str, int]]) -> Path:
    """The folder, with vLLM's files of these entries in it."""
    VllmExporter().export(
        [selection(shape, **config) for shape, config in entries],
        runner.environment,
        folder,
        merge=False,
    )
    return folder


def file_of(folder: Path, shape: KernelShape) -> Path:
    return folder / shape.file_name("NVIDIA Test-GPU")


# ------------------------------------------------------------------ on a recording


class Watched(ReplayRunner):
    """A replay that keeps what it was asked to compare."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self.compared: list[list[KernelConfig]] = []
        self.enough: list[EnoughRule] = []

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        self.compared.append(list(configs))
        self.enough.append(enough)
        return super().compare(shape, configs, enough)


@pytest.fixture
def replay(tmp_path) -> Watched:
    return Watched([write_recording(tmp_path / "r.jsonl.gz")])


def replayed(runner: ReplayRunner, folder: Path) -> list[Benched]:
    plan = StudyPlan.of_shapes(runner.shapes)
    return bench(plan, runner, folder, ceilings=CEILINGS, tokens_given=True)


def best(shape: KernelShape) -> dict[str, int]:
    return BEST | ({"split_k": 8} if "split_k" in shape.op.parameters else {})


def test_each_shape_is_benched_with_the_entry_that_vllm_finds(replay, tmp_path):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    rows = replayed(replay, folder)

    assert [row.shape for row in rows] == list(replay.shapes)
    for row in rows:
        assert row.config == KernelConfig.from_mapping(row.shape.op, best(row.shape))
        assert row.path == row.shape.lookup_key
        # The recording's slowest: 10 + 4 (1 + 2^1.5 + 1 + 1 + log2(3/2)^1.5), its median 0.2 % up.
        assert (row.default_us, row.tuned_us) == (35.173, 10.02)
        assert row.ratio is not None
        assert row.ratio.value == pytest.approx(3.5103, abs=1e-4)
        assert (row.verdict, row.is_slower, row.is_throttled) == ("faster", False, False)
    assert [row.tuned_share for row in rows] == pytest.approx([3.279872 / 10.02, 3.158016 / 10.02])
    assert rows[0].default_share == pytest.approx(3.279872 / 35.173)


def test_json_says_all_of_a_shape_in_plain_values(replay, tmp_path):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    shrink, _ = [row.as_dict() for row in replayed(replay, folder)]

    assert json.loads(json.dumps(shrink)) == shrink
    assert shrink.items() >= SHRINK.items()
    assert shrink["key"] == [9, 3, 16, 4096, 16]
    assert shrink["low"] <= shrink["ratio"] <= shrink["high"]
    assert (shrink["default_us"], shrink["tuned_us"]) == (35.173, 10.02)
    assert (shrink["verdict"], shrink["is_between"], shrink["is_throttled"]) == (
        "faster",
        False,
        False,
    )
    assert shrink["tuned_roofline_share"] > shrink["default_roofline_share"] > 0


def test_an_entry_with_the_default_s_values_is_timed_once_and_its_verdict_is_same(replay, tmp_path):
    defaults = {each: replay.space(each, {}).default for each in replay.shapes}
    entries = [(each, default.as_dict()) for each, default in defaults.items()]
    rows = replayed(replay, exported(tmp_path / "f", replay, *entries))

    assert replay.compared == [[default] for default in defaults.values()]
    for row in rows:
        assert row.ratio == Ratio(value=1.0, low=1.0, high=1.0)
        assert (row.verdict, row.tuned_us) == ("same", row.default_us)


def test_timing_goes_on_while_the_ratio_is_uncertain_whichever_is_ahead(replay, tmp_path):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    replayed(replay, folder)
    (default, tuned), enough = replay.compared[0], replay.enough[0]

    scattered, steady = [10.0, 11.0, 12.0] * 7, [9.0] * 21
    assert not enough({default: scattered, tuned: steady})
    assert not enough({default: steady, tuned: scattered})
    assert enough({default: steady, tuned: [8.0] * 21})
    assert enough({default: steady})
    assert enough({tuned: steady})


def test_progress_is_told_of_every_shape(replay, tmp_path):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    told: list[tuple[Benched, int, int]] = []
    rows = bench(
        StudyPlan.of_shapes(replay.shapes),
        replay,
        folder,
        ceilings=CEILINGS,
        tokens_given=True,
        progress=lambda *each: told.append(each),
    )
    assert told == [(rows[0], 1, 2), (rows[1], 2, 2)]


# ------------------------------------------------------------------ what cannot be used


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the entry of 16 tokens, or of 64 in the file of expand, in place."""
    table = json.loads(path.read_text())
    change(table["9"])
    path.write_text(json.dumps(table))


def shrink_entry(below: dict[str, Any]) -> dict[str, Any]:
    entry = below["3"]["16"]["4096"]["16"]
    assert isinstance(entry, dict)
    return entry


KEY = "9/3/16/4096/16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda below: below.update({"1": below.pop("3")}),
            f"SHRINK.json: looking up {KEY}: vLLM would stop: no entry for num_slices 3, only 1",
        ),
        (
            lambda below: shrink_entry(below).pop("num_ctas"),
            f"SHRINK.json: looking up {KEY}: vLLM would stop: the entry has no num_ctas, only",
        ),
        (
            lambda below: shrink_entry(below).update(block_m="16"),
            f"SHRINK.json: looking up {KEY}: block_m must be 1 to 4096: got '16'",
        ),
    ],
)
def test_an_entry_that_vllm_cannot_use_is_named_before_anything_is_timed(
    replay, tmp_path, change, message
):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    changed(file_of(folder, replay.shapes[0]), change)
    with pytest.raises(InputError, match=message):
        replayed(replay, folder)
    assert replay.compared == []


def test_unknown_and_optional_parameters_of_an_entry_are_no_error(replay, tmp_path):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    changed(
        file_of(folder, replay.shapes[0]), lambda below: shrink_entry(below).pop("group_size_m")
    )
    changed(
        file_of(folder, replay.shapes[1]),
        lambda below: below["3"]["64"]["16"]["4096"].update(split_k=1, max_nreg=None),
    )
    assert [row.verdict for row in replayed(replay, folder)] == ["faster", "faster"]


@pytest.mark.parametrize(
    "leaf", [{"block_m": 32, "num_warps": 8}, {"BLOCK_SIZE_M": 32, "NUM_WARPS": 8, "more": 1}]
)
def test_a_moe_entry_is_read_as_vllm_reads_it(tmp_path, leaf):
    shape = moe_shape(LoraOp.W2_SHRINK)
    nested: dict[str, Any] = leaf
    for key in reversed(shape.lookup_key):
        nested = {str(key): nested}
    file_of(tmp_path, shape).write_text(json.dumps(nested))

    entry = find_entry(tmp_path, shape, "NVIDIA Test-GPU")

    assert entry.config == moe_config(block_m=32, num_warps=8)
    assert entry.path == shape.lookup_key


def test_a_folder_without_the_file_of_an_op_is_named(replay, tmp_path):
    shrink, expand = replay.shapes
    folder = exported(tmp_path / "f", replay, (shrink, best(shrink)))
    with pytest.raises(InputError, match=f"{file_of(folder, expand)} is not there: tune expand"):
        replayed(replay, folder)


def test_a_folder_that_is_not_there_is_named(replay, tmp_path):
    with pytest.raises(InputError, match=f"there is no folder {tmp_path / 'none'}: give"):
        replayed(replay, tmp_path / "none")


def test_a_file_that_is_no_json_is_named(replay, tmp_path):
    folder = exported(tmp_path / "f", replay, *[(each, best(each)) for each in replay.shapes])
    path = file_of(folder, replay.shapes[0])
    path.write_text("{")
    with pytest.raises(InputError, match=f"{path}: it is no JSON"):
        replayed(replay, folder)


# ------------------------------------------------------------------ between the tuned counts


def test_between_two_counts_lies_their_geometric_mean_if_it_is_another_number():
    assert between_counts([1024, 1, 128, 16]) == [4, 45, 362]
    assert between_counts([1, 2, 3]) == []
    assert between_counts([7]) == []


@given(st.lists(st.integers(1, 100_000), min_size=1))
def test_every_count_between_lies_strictly_between_two_neighbours(counts):
    ordered = sorted(set(counts))
    between = between_counts(counts)
    assert not set(between) & set(ordered)
    gaps = [sum(count < each for count in ordered) for each in between]
    assert len(set(gaps)) == len(gaps), "one for each two neighbours"
    assert all(0 < gap < len(ordered) for gap in gaps)


# ------------------------------------------------------------------ on a fake device


@pytest.fixture(scope="module")
def cuda(tmp_path_factory) -> Iterator[CudaRunner]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        with CudaRunner(
            Processes("builtin", compile_workers=1, device_server=FakeDevice)
        ) as runner:
            yield runner


@pytest.fixture
def plan(tmp_path) -> StudyPlan:
    (tmp_path / "study.toml").write_text(STUDY)
    return StudyPlan.read(tmp_path / "study.toml")


def test_a_device_says_what_it_reaches(cuda):
    assert cuda.ceilings() == CEILINGS


@pytest.mark.slow
def test_counts_between_the_plan_s_are_benched_with_the_nearest_key_s_entry(cuda, plan, tmp_path):
    one, sixteen = plan.shapes
    faster, slower = FAKE_DEFAULT | {"block_k": 32}, FAKE_DEFAULT | {"block_k": 128}
    folder = exported(tmp_path / "f", cuda, (one, faster), (sixteen, slower))
    rows = bench(plan, cuda, folder, ceilings=cuda.ceilings(), tokens_given=False)

    assert [(row.shape.num_tokens, row.is_between, row.path[2]) for row in rows] == [
        (1, False, 1),
        (4, True, 1),
        (16, False, 16),
    ]
    assert [(row.default_us, row.tuned_us) for row in rows] == [(64, 32), (64, 32), (64, 128)]
    assert [row.verdict for row in rows] == ["faster", "faster", "slower"]
    assert [row.is_slower for row in rows] == [False, False, True]
    assert {row.layer for row in rows} == {"qkv"}
    assert [row.floor_us for row in rows] == [floor_us(row.shape, CEILINGS) for row in rows]
    assert [tokens_text(row) for row in rows] == ["1", "4 (as 1)", "16"]
    assert verdict_counts(rows) == "2 faster, 0 same, 1 slower"


@pytest.mark.slow
def test_only_the_counts_that_were_given_are_benched(cuda, plan, tmp_path):
    folder = exported(tmp_path / "f", cuda, (plan.shapes[0], FAKE_DEFAULT))
    rows = bench(plan, cuda, folder, ceilings=CEILINGS, tokens_given=True)
    assert [(row.shape.num_tokens, row.path[2]) for row in rows] == [(1, 1), (16, 1)]
    assert [tokens_text(row) for row in rows] == ["1", "16 (as 1)"]


@pytest.mark.slow
def test_an_entry_that_launches_as_the_default_does_is_the_same(cuda, plan, tmp_path):
    # With one column of blocks group_size_m changes nothing.
    folder = exported(tmp_path / "f", cuda, (plan.shapes[1], FAKE_DEFAULT | {"group_size_m": 16}))
    (row,) = bench(plan.override(tokens=[16]), cuda, folder, ceilings=CEILINGS, tokens_given=True)
    assert row.config.group_size_m == 16
    assert (row.verdict, row.ratio) == ("same", Ratio(value=1.0, low=1.0, high=1.0))


def test_an_entry_that_gives_wrong_numbers_does_not_run_and_counts_as_slower(cuda, plan, tmp_path):
    folder = exported(tmp_path / "f", cuda, (plan.shapes[0], FAKE_DEFAULT | {"num_warps": LIES}))
    row, _ = bench(plan, cuda, folder, ceilings=CEILINGS, tokens_given=True)
    assert (row.verdict, row.is_slower) == (DOES_NOT_RUN, True)
    assert (row.default_us, row.tuned_us, row.ratio, row.tuned_share) == (64, None, None, None)
    assert bench_cells(row)[1:4] == ("does not run", "-", "does not run")
    assert verdict_counts([row]) == "0 faster, 0 same, 0 slower, 1 does not run"


# ------------------------------------------------------------------ rows and their text


def row(**changes: Any) -> Benched:
    shape = KernelShape.from_mapping(EXPAND)
    usual = Benched(
        shape=shape,
        layer="qkv",
        is_between=False,
        path=shape.lookup_key,
        config=selection(shape).config,
        default_us=20.0,
        tuned_us=10.0,
        ratio=Ratio(value=2.0, low=1.9, high=2.1),
        floor_us=5.0,
        is_throttled=False,
    )
    return replace(usual, **changes)


def test_a_row_has_latencies_ratio_verdict_and_shares():
    assert bench_cells(row()) == ("20.00", "10.00", "2.00x [1.90, 2.10]", "faster", "25% -> 50%")
    assert bench_cells(row(is_throttled=True))[3] == "faster (throttled)"


def test_an_entry_that_runs_where_the_default_does_not_is_faster():
    only_tuned = row(default_us=None, ratio=None)
    assert (only_tuned.verdict, only_tuned.is_slower) == ("faster", False)
    assert bench_cells(only_tuned) == ("does not run", "10.00", "-", "faster", "- -> 50%")


def test_a_ratio_is_slower_only_where_its_interval_lies_below_one():
    assert row(ratio=Ratio(value=0.9, low=0.8, high=0.99)).is_slower
    assert not row(ratio=Ratio(value=0.99, low=0.97, high=1.01)).is_slower


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "64"),
        ({"is_between": True}, "64 (as 64)"),
        ({"path": DenseKey(9, 3, 1, 16, 4096)}, "64 (as 1)"),
        ({"path": DenseKey(5, 3, 64, 16, 4096)}, "64 (as 5/3/64/16/4096)"),
    ],
)
def test_tokens_say_which_key_vllm_takes_where_it_is_another(changes, text):
    assert tokens_text(row(**changes)) == text


def test_the_table_has_a_row_for_every_shape():
    table = bench_table([row(), row(is_between=True)])
    assert [column.header for column in table.columns][:4] == ["op", "layer", "sizes", "tokens"]
    assert table.row_count == 2
