"""What a server launches at its start, so that it compiles nothing while it serves."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.export.check.examine import read_folder
from autotune.export.collection import collected
from autotune.export.lookup import look_up
from autotune.export.nested import put_leaf
from autotune.export.served_folder import served_kernels
from autotune.launch.binary import binary_of
from autotune.launch.config import KernelConfig
from autotune.launch.late import Compiled
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.defaults import default_config
from autotune.plan.study import StudyPlan
from autotune.trace.startup import Kernel, sizes_to_launch, steps_between
from tests.trace import server
from tests.trace.test_plugin import said
from tests.vllm.releases import ROOT

DENSE: list[dict[str, Any]] = [
    {"op": "shrink", "hidden_size": 4096, "num_slices": 3},
    {"op": "shrink", "hidden_size": 1000, "num_slices": 1},
    {"op": "expand", "slice_sizes": [4096, 1024, 1024]},
    {"op": "expand", "slice_sizes": [1001, 1001]},
]
EXPERTS: list[dict[str, Any]] = [
    {"op": op.value, "hidden_size": 2048, "num_slices": 2 if "w13" in op.value else 1}
    | {"num_experts": 128, "top_k": 8, "intermediate_size": 768}
    for op in LoraOp
    if op.is_moe
]


def shape_of(table: dict[str, Any], rank: int) -> KernelShape:
    return KernelShape.from_mapping({"num_tokens": 1, "max_loras": 8, "rank": rank} | table)


def configs(op: LoraOp) -> st.SearchStrategy[KernelConfig]:
    """One of a few configurations: rows of a file often share them."""
    usual = {"block_m": 16, "block_n": 32, "block_k": 64, "num_warps": 4, "num_stages": 3}
    return st.integers(1, 4).map(
        lambda n: KernelConfig.from_mapping(
            op, usual | {"block_m": 16 * n} | ({"split_k": n} if op is LoraOp.SHRINK else {})
        )
    )


class Folder:
    """A look-up as vLLM does it, in tables of one kernel each; the default where there is none."""

    def __init__(self, tables: dict[KernelShape, dict[int, KernelConfig]]) -> None:
        self._rows = tables
        self._kinds = {tuple(asked(kind).items()): kind for kind in tables}

    def __call__(self, batch: int, **named: Any) -> dict[str, int]:
        kind = self._kinds[tuple(named.items())]
        return self.config(kind, batch).as_dict()

    def config(self, kind: KernelShape, batch: int) -> KernelConfig:
        shape = replace(kind, num_tokens=batch)
        if not self._rows[kind]:
            return default_config(shape)
        key = look_up(self._table(kind), shape.lookup_key).path
        return self._rows[kind][key.m]

    @cache  # noqa: B019 - a test's
    def _table(self, kind: KernelShape) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for row, config in self._rows[kind].items():
            put_leaf(table, replace(kind, num_tokens=row).lookup_key, config.as_dict())
        return table


def asked(kind: KernelShape) -> dict[str, Any]:
    """The arguments of a kernel's look-up, but for the batch size."""
    named = {"op_type": kind.op.value, "max_loras": 9, "hidden_size": kind.hidden_size}
    return named | {"rank": kind.rank, "num_slices": kind.num_slices}


def kernel_of(kind: KernelShape) -> Kernel:
    """The kernel as a step's look-up and its caller show it."""
    experts = (kind.top_k or None, kind.global_experts or None)
    return Kernel(tuple(asked(kind).items()), 1, *experts)


@st.composite
def folders(draw: st.DrawFn, kinds: list[KernelShape]) -> Folder:
    def rows(kind: KernelShape) -> st.SearchStrategy[dict[int, KernelConfig]]:
        return st.dictionaries(st.sampled_from([1, 16, 64, 100, 150, 256, 300]), configs(kind.op))

    return Folder({kind: draw(rows(kind)) for kind in kinds})


def needed(folder: Folder, kinds: list[KernelShape], size: int, release: str) -> set[Any]:
    return {
        binary_of(replace(kind, num_tokens=size), folder.config(kind, size), release=release)
        for kind in kinds
    }


@pytest.mark.slow
@given(
    st.data(),
    st.sampled_from([1, 8, 16, 64]),
    st.sampled_from([[], [1, 2, 4], [1, 2, 4, 8, 16, 24, 32, 64]]),
    st.integers(100, 400),
)
def test_nothing_of_a_dense_model_is_compiled_while_it_serves(data, rank, captured, most):
    kinds = [shape_of(table, rank) for table in DENSE]
    check_whole(data, kinds, captured, most, "0.33.0")


@pytest.mark.slow
@given(st.data(), st.integers(100, 300), st.sampled_from([16, 256]))
def test_nor_of_experts(data, most, rank):
    """At rank 16 one kernel does a shrink and its expand, and vLLM reads ``block_m`` alone."""
    kinds = [shape_of(table, rank) for table in EXPERTS]
    check_whole(data, kinds, [1, 2, 4, 8, 16, 32], most, "0.33.0")


def check_whole(
    data: st.DataObject, kinds: list[KernelShape], captured: list[int], most: int, release: str
) -> None:
    folder = data.draw(folders(kinds))
    later = range(max(captured, default=0) + 1, most)
    launched = {*captured, most}
    kernels = [kernel_of(kind) for kind in kinds]
    more = sizes_to_launch(kernels, folder, later=later, launched=launched)
    assert set(more) <= set(later)
    have = {each for n in (*launched, *more) for each in needed(folder, kinds, n, release)}
    for size in later:
        assert needed(folder, kinds, size, release) <= have, size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "captured", "counts"),
    [
        ("llama-3.1-8b", None, (0, 20, 4, 8)),
        ("llama-3.1-8b", [1, 2, 4, 16, 64], (3, 54, 10, 10)),
        ("qwen3-30b-a3b", None, (4, 21, 5, 17)),
    ],
)
def test_with_the_shipped_files_nothing_is_late(model, captured, counts):
    """The documentation has these counts: late with the defaults, with the files; steps, logits."""
    limits = {"max_num_batched_tokens": 8192}
    limits |= {} if captured is None else {"cudagraph_capture_sizes": captured}
    config = ROOT / "studies" / "models" / f"{model}.json"
    plan = StudyPlan.of_model(str(config)).with_model({}, limits).override(max_loras=8, rank=16)
    (shipped,) = (each for each in collected() if "H100" in each.gpu)
    read = read_folder(shipped.folder, [shipped.gpu], None, "0.33.0")
    kernels = list(served_kernels(shipped.gpu, plan.served, read))
    by_name = {tuple(asked(each.kind).items()): each for each in kernels}

    def looked_up(batch: int, **named: Any) -> dict[str, int]:
        found = by_name[tuple(named.items())].config_at(batch)
        assert found is not None
        return found.as_dict()

    have: set[Any] = set()
    warmed = {each.kind: set(each.sizes.warmed) for each in kernels}
    chosen = []
    for is_step in (True, False):  # steps, then the rows of logits, which begin at one
        later = {
            each.kind: some
            for each in kernels
            for some in each.sizes.later
            if (some.start > 1) is is_step
        }
        sizes = next(iter(later.values()))
        launched = {sizes.stop - 1, *(plan.batches.captured if is_step else ())}
        more = sizes_to_launch(
            list(map(kernel_of, later)),
            looked_up,
            later=sizes,
            launched=launched,
            have=have,
        )
        chosen.append(len(more))
        for kind in later:
            warmed[kind] |= {*more, *launched}
    after = [
        replace(each, sizes=replace(each.sizes, warmed=tuple(sorted(warmed[each.kind]))))
        for each in kernels
    ]
    default = Compiled.of(list(served_kernels(shipped.gpu, plan.served, {})))
    assert (len(default.late), len(Compiled.of(kernels).late), *chosen) == counts
    assert not Compiled.of(after).late


def test_few_sizes_are_enough():
    """Two rows beyond the captured sizes: a multiple of 16 and another size of each."""
    kind = shape_of(DENSE[0], 16)
    one, other = (
        KernelConfig.from_mapping(kind.op, default_config(kind).as_dict() | {"split_k": split_k})
        for split_k in (2, 4)
    )
    folder = Folder({kind: {512: one, 1024: one, 2048: other}})
    kernels = [kernel_of(kind)]
    sizes = sizes_to_launch(kernels, folder, later=range(513, 8192), launched={512, 8192})
    assert sizes == [513, 1537]
    assert sizes_to_launch(kernels, folder, later=range(513, 8192), launched=[]) == [
        *(513, 528, 1537, 1552)
    ]


def test_of_very_many_batch_sizes_every_remainder_is_looked_up():
    sizes = list(steps_between(513, 131_072))
    assert sizes[:15_871] == list(range(513, 16_384))
    assert len(sizes) < 31_000
    assert {n % 16 for n in sizes if 100_000 <= n < 100_300} == set(range(16))


def test_a_kernel_with_more_rows_than_tokens_is_looked_up_at_its_rows():
    kind = shape_of(DENSE[0], 16)
    config = default_config(kind)
    folder = Folder({kind: {1: config, 4000: replace(config, split_k=2)}})
    kernels = [kernel_of(kind)._replace(times=4)]
    sizes = sizes_to_launch(kernels, folder, later=range(16, 1024), launched={16})
    assert sizes == [17, 501, 504]  # of 4 rows a token, 2001 is the first nearer to 4000


# ------------------------------------------------------------------ in a server's process

#: A server whose worker warms up as vLLM's does.
WORKER = """
import contextlib, types
kernel_warmup = __import__(
    "vllm.model_executor.warmup.kernel_warmup", fromlist=["kernel_warmup"]
).kernel_warmup
ran = []

class Rows:
    def __init__(self, count):
        self.shape = (count, 4096)

    def __getitem__(self, some):
        return Rows(some.stop)

def compute_logits(rows):
    ran.append(rows.shape[0])
    ops._lora_shrink(None, [Weight((8, 1, 16, 4096), 1)], 9, rows.shape[0])

class Runner:
    max_num_tokens = 128
    model = types.SimpleNamespace({logits})

    def _dummy_run(self, num_tokens, skip_eplb=False, remove_lora=True, {flag}):
        ran.append((num_tokens, skip_eplb, remove_lora, {name}))
        {fault}
        forward(num_tokens)
        return Rows(num_tokens), None

    @contextlib.contextmanager
    def maybe_dummy_run_with_lora(
        self, lora_config, num_scheduled_tokens, num_sampled_tokens, remove_lora=True, {flag}
    ):
        assert list(num_scheduled_tokens) == list(num_sampled_tokens)
        assert not remove_lora and ({name} or "{name}" == "args, kwargs")
        ran.append(len(num_sampled_tokens))
        yield

    def maybe_remove_all_loras(self, lora_config):
        ran.append("removed")

of = types.SimpleNamespace
sys.modules["torch"] = of(
    cuda=of(synchronize=lambda: None), inference_mode=contextlib.nullcontext
)
worker = of(model_runner=Runner(), vllm_config=of(
    lora_config={lora}, scheduler_config=of(max_num_batched_tokens=128, max_num_seqs=8),
    model_config=of(enforce_eager=False),
    compilation_config=of(cudagraph_capture_sizes=[1, 2, 16], cudagraph_mode=of(name="FULL")),
))
before = utils.get_lora_op_configs
print(kernel_warmup(worker), ran)
print(utils.get_lora_op_configs is before is ops.get_lora_op_configs)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = server.package(tmp_path_factory.mktemp("server"))
    home = found / "vllm" / "model_executor" / "warmup"
    home.mkdir(parents=True)
    for each in (home, home.parent):
        (each / "__init__.py").touch()
    (home / "kernel_warmup.py").write_text("def kernel_warmup(worker):\n    return 'warm'\n")
    return found


def script(
    *,
    flag: str = "num_active_loras=0",
    value: str = "",
    fault: str = "pass",
    lora: str = "of(max_loras=8)",
    logits: str = "",
) -> str:
    table = {"flag": flag, "fault": fault, "lora": lora, "name": value or flag.partition("=")[0]}
    table["logits"] = logits
    text = WORKER
    for name, part in table.items():
        text = text.replace(f"{{{name}}}", part)
    return text


#: The server's table gives every batch size a configuration of its own.
ALL = [(size, True, False) for size in (128, *range(127, 16, -1))]


@pytest.mark.parametrize(
    ("flag", "value"), [("num_active_loras=0", 8), ("activate_lora=False", True)]
)
def test_the_steps_are_run_with_loras_after_the_servers_own(folder, flag, value):
    out, err = said(script(flag=flag), server.environment(folder, None, AUTOTUNE_WARM="1"))
    ran = [(*each, value) for each in ALL]
    assert out.splitlines() == [f"warm {[*ran, 'removed']}", "True"]
    assert not err


@pytest.mark.parametrize("flag", ["num_active_loras=0", "activate_lora=False"])
def test_logits_of_any_number_of_rows_are_computed_after_the_steps(folder, flag):
    """A kernel that steps launch, too: at the captured sizes 1, 2 and 16, and from 17 on."""
    text = script(flag=flag, logits="compute_logits=compute_logits")
    out, err = said(text, server.environment(folder, None, AUTOTUNE_WARM="1"))
    ran = ast.literal_eval(out.splitlines()[0].removeprefix("warm "))
    assert ran[len(ALL) :] == [*(n for n in range(8, 2, -1) for _ in range(2)), "removed"]
    assert out.splitlines()[1] == "True"
    assert not err


def test_a_fault_of_the_logits_comes_after_the_steps(folder):
    text = script(logits="compute_logits=lambda rows: 1 / 0")
    out, err = said(text, server.environment(folder, None, AUTOTUNE_WARM="1"))
    ran = ast.literal_eval(out.splitlines()[0].removeprefix("warm "))
    assert len(ran) == len(ALL) + 2
    assert "ZeroDivisionError" in err


def test_the_second_runner_gets_what_it_names_and_nothing_else(folder):
    """It takes any arguments, and always runs with LoRAs."""
    text = script(flag="*args, **kwargs", value="args, kwargs")
    out, err = said(text, server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.startswith(f"warm {[(*ALL[0], (), {})]}"[:-1])
    assert not err


@pytest.mark.parametrize("value", ["", "0", "false", " No ", "OFF"])
def test_without_the_variable_nothing_happens(folder, value):
    out, err = said(script(), server.environment(folder, None, AUTOTUNE_WARM=value))
    assert out.splitlines() == ["warm []", "True"]
    assert not err


@pytest.mark.parametrize("value", ["TRUE", " yes ", "on"])
def test_other_words_for_yes_are_yes(folder, value):
    out, err = said(script(), server.environment(folder, None, AUTOTUNE_WARM=value))
    assert not out.startswith("warm []")
    assert not err


@pytest.mark.parametrize("value", ["2", "-1", "nope", "sm_90", "1 2"])
def test_a_value_that_is_neither_yes_nor_no_is_a_line_and_nothing_happens(folder, value):
    out, err = said(script(), server.environment(folder, None, AUTOTUNE_WARM=value))
    assert out.splitlines() == ["warm []", "True"]
    assert f"AUTOTUNE_WARM must be 1 or 0: got {value!r}" in err


def test_a_fault_is_a_line_and_the_server_goes_on(folder):
    fault = "if num_tokens == 100: raise RuntimeError('no memory')"
    out, err = said(script(fault=fault), server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.splitlines()[0].endswith("'removed']")
    assert out.splitlines()[1] == "True"
    assert err.splitlines() == [
        "kernels may be compiled while the server serves: RuntimeError('no memory')"
    ]


def test_what_a_step_that_fails_leaves_behind_is_undone(folder):
    """As the second model runner does: a connector switched off, and a step that is under way."""
    fault = (
        "self.kv_connector = of(set_disabled=lambda off: ran.append(off)); "
        "self.execute_model_state = 1; 1 / 0"
    )
    text = script(fault=fault) + "print(worker.model_runner.execute_model_state)\n"
    out, err = said(text, server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.splitlines()[0].endswith("False, 'removed']")
    assert out.splitlines()[-1] == "None"
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize("broken", ["None", "3"])
def test_a_server_without_loras_and_one_of_another_kind_go_on(folder, broken):
    out, err = said(script(lora=broken), server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.startswith("warm ")
    assert len(err.splitlines()) == (broken != "None")


def test_a_trace_has_the_steps_too(folder, tmp_path):
    trace = tmp_path / "trace.jsonl"
    environ = server.environment(folder, trace, AUTOTUNE_WARM="1")
    said(script() + "forward(50)\n", environ)
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    batches = {line["batch"]: line["when"] for line in lines if "batch" in line}
    assert set(batches) == {*range(17, 129)}
    assert all(line["lora_a"] for line in lines if line.get("op") == "shrink")


def test_the_warm_up_is_wrapped_once_also_where_it_was_imported_before(folder):
    again = """
    import vllm.model_executor.warmup.kernel_warmup as home
    print(hasattr(home.kernel_warmup.__wrapped__, "__wrapped__"))
    """.replace("    ", "")
    before = "import vllm.model_executor.warmup.kernel_warmup\ninstall()\n"
    out, _ = said(before + again, server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.strip() == "False"
