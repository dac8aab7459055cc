"""What a server launches at its start, so that it compiles nothing while it serves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.export.lookup import look_up
from autotune.launch.binary import binary_of
from autotune.launch.config import KernelConfig
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.measure.kernels.defaults import default_config
from autotune.trace.startup import Kernel, sizes_to_launch
from tests.trace import server
from tests.trace.test_plugin import said

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
        self._kinds = {tuple(sorted(asked(kind).items())): kind for kind in tables}

    def __call__(self, batch: int, **named: Any) -> dict[str, int]:
        kind = self._kinds[tuple(sorted(named.items()))]
        return self.config(kind, batch).as_dict()

    def config(self, kind: KernelShape, batch: int) -> KernelConfig:
        shape, rows = replace(kind, num_tokens=batch), self._rows[kind]
        if not rows:
            return default_config(shape)
        table: dict[str, Any] = {}
        for row, config in rows.items():
            below = table
            *above, last = replace(kind, num_tokens=row).lookup_key
            for key in above:
                below = below.setdefault(str(key), {})
            below[str(last)] = config.as_dict()
        return KernelConfig.from_mapping(kind.op, look_up(table, shape.lookup_key).leaf)


def asked(kind: KernelShape) -> dict[str, Any]:
    """The arguments of a kernel's look-up, but for the batch size."""
    named = {"op_type": kind.op.value, "max_loras": 9, "hidden_size": kind.hidden_size}
    return named | {"rank": kind.rank, "num_slices": kind.num_slices}


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


@given(
    st.data(),
    st.sampled_from([1, 8, 16, 64]),
    st.sampled_from([[], [1, 2, 4], [1, 2, 4, 8, 16, 24, 32, 64]]),
    st.integers(100, 400),
)
def test_nothing_of_a_dense_model_is_compiled_while_it_serves(data, rank, captured, most):
    kinds = [shape_of(table, rank) for table in DENSE]
    check_whole(data, kinds, captured, most, "0.33.0")


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
    kernels = [
        Kernel(
            tuple(sorted(asked(kind).items())),
            top_k=kind.top_k or None,
            experts=kind.global_experts or None,
        )
        for kind in kinds
    ]
    more = sizes_to_launch(kernels, folder, later=later, launched=launched)
    assert set(more) <= set(later)
    have = {each for n in (*launched, *more) for each in needed(folder, kinds, n, release)}
    for size in later:
        assert needed(folder, kinds, size, release) <= have, size


def test_few_sizes_are_enough():
    """Two rows beyond the captured sizes: a multiple of 16 and another size of each."""
    kind = shape_of(DENSE[0], 16)
    one, other = (
        KernelConfig.from_mapping(kind.op, default_config(kind).as_dict() | {"split_k": split_k})
        for split_k in (2, 4)
    )
    folder = Folder({kind: {512: one, 1024: one, 2048: other}})
    kernels = [Kernel(tuple(sorted(asked(kind).items())))]
    sizes = sizes_to_launch(kernels, folder, later=range(513, 8192), launched={512, 8192})
    assert sizes == [513, 1537]
    assert sizes_to_launch(kernels, folder, later=range(513, 8192), launched=[]) == [
        *(513, 528, 1537, 1552)
    ]


def test_a_kernel_with_more_rows_than_tokens_is_looked_up_at_its_rows():
    kind = shape_of(DENSE[0], 16)
    config = default_config(kind)
    folder = Folder({kind: {1: config, 4000: replace(config, split_k=2)}})
    kernels = [Kernel(tuple(sorted(asked(kind).items())), times=4)]
    sizes = sizes_to_launch(kernels, folder, later=range(16, 1024), launched={16})
    assert sizes == [17, 501, 504]  # of 4 rows a token, 2001 is the first nearer to 4000


# ------------------------------------------------------------------ in a server's process

#: A server whose worker warms up as vLLM's does.
WORKER = """
import types
kernel_warmup = __import__(
    "vllm.model_executor.warmup.kernel_warmup", fromlist=["kernel_warmup"]
).kernel_warmup
ran = []

class Runner:
    max_num_tokens = 128

    def _dummy_run(self, num_tokens, skip_eplb=False, remove_lora=True, {flag}):
        ran.append((num_tokens, skip_eplb, remove_lora, {name}))
        {fault}
        forward(num_tokens)

    def maybe_remove_all_loras(self, lora_config):
        ran.append("removed")

sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(synchronize=lambda: None))
of = types.SimpleNamespace
worker = of(model_runner=Runner(), vllm_config=of(
    lora_config={lora}, scheduler_config=of(max_num_batched_tokens=128),
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
) -> str:
    table = {"flag": flag, "fault": fault, "lora": lora, "name": value or flag.partition("=")[0]}
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


def test_the_second_runner_gets_what_it_names_and_nothing_else(folder):
    """It takes any arguments, and always runs with LoRAs."""
    text = script(flag="*args, **kwargs", value="args, kwargs")
    out, err = said(text, server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.startswith(f"warm {[(*ALL[0], (), {})]}"[:-1])
    assert not err


@pytest.mark.parametrize("value", ["", "0", "false", "False"])
def test_without_the_variable_nothing_happens(folder, value):
    out, err = said(script(), server.environment(folder, None, AUTOTUNE_WARM=value))
    assert out.splitlines() == ["warm []", "True"]
    assert not err


def test_a_fault_is_a_line_and_the_server_goes_on(folder):
    fault = "if num_tokens == 100: raise RuntimeError('no memory')"
    out, err = said(script(fault=fault), server.environment(folder, None, AUTOTUNE_WARM="1"))
    assert out.splitlines()[0].endswith("'removed']")
    assert out.splitlines()[1] == "True"
    assert err.splitlines() == [
        "kernels may be compiled while the server serves: RuntimeError('no memory')"
    ]


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
