"""``AUTOTUNE_WARM`` in each release: which steps more are run, and that nothing is late then.

The look-ups are those of vLLM's own callers; the worker's file is read, since importing it needs a
GPU.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.export.check.examine import read_folder
from autotune.export.nested import put_leaf
from autotune.export.served_folder import served_kernels
from autotune.launch.config import KernelConfig
from autotune.launch.late import Compiled
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.measure.kernels.defaults import default_config
from autotune.trace.hook import WARM_UP
from tests.measure.kernels.cases import H100, expand_shape, moe_shape, shrink_shape
from tests.vllm.conftest import need
from tests.vllm.releases import RELEASES
from tests.vllm.test_traced import SCRIPT

pytestmark = pytest.mark.vllm

GPU = "NVIDIA H100"
CAPTURED, MOST = (1, 2, 4, 8, 16, 32), 200

KINDS = [
    shrink_shape(num_tokens=1, hidden_size=256, rank=16, num_slices=3),
    expand_shape(num_tokens=1, slice_sizes=[128, 32, 32], rank=16),
    shrink_shape(num_tokens=1, hidden_size=70, rank=8, num_slices=1),
    expand_shape(num_tokens=1, slice_sizes=[70], rank=8),
    *(moe_shape(op, num_experts=8) for op in LoraOp if op.is_moe),
]

#: Warms up a worker whose step has the release's own arguments, and prints the steps that were run.
WORKER = """
from dataclasses import replace
from autotune.trace.hook import WARM_UP

kinds, step = [KernelShape.from_mapping(each) for each in shapes[0]], shapes[1]
torch.cuda.synchronize = lambda: None
kept, ran = [], []

def forward(tokens):
    ran.append(tokens)
    for kind in kinds:
        shape = replace(kind, num_tokens=tokens)
        kept.append(experts(shape) if shape.op.is_moe else dense(shape))

exec(step)

class Runner:
    max_num_tokens = MOST
    _dummy_run = _dummy_run

    def maybe_remove_all_loras(self, _):
        ran.append(0)

home = types.ModuleType(WARM_UP.home)
home.__name__ = "vllm.model_executor.warmup.kernel_warmup"
home.kernel_warmup = lambda worker: None
sys.modules[WARM_UP.home] = home
install()
worker = SimpleNamespace(model_runner=Runner(), vllm_config=SimpleNamespace(
    lora_config=SimpleNamespace(max_loras=2),
    scheduler_config=SimpleNamespace(max_num_batched_tokens=MOST),
    model_config=SimpleNamespace(enforce_eager=False),
    compilation_config=SimpleNamespace(cudagraph_capture_sizes=CAPTURED),
))
home.kernel_warmup(worker)
print(json.dumps(ran))
"""


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    return need(request.param, request.config)


def function(path: Path, name: str) -> ast.FunctionDef:
    nodes = ast.walk(ast.parse(path.read_text()))
    found = (each for each in nodes if isinstance(each, ast.FunctionDef) and each.name == name)
    return next(found)


def calls(node: ast.AST) -> Iterator[str]:
    """The names of what is called, in the order of the lines."""
    found = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
    for each in sorted(found, key=lambda call: call.lineno):
        yield getattr(each.func, "attr", getattr(each.func, "id", ""))


def test_the_worker_warms_up_by_that_name_after_its_steps_and_before_its_graphs(release):
    """And before vLLM's monitor of compiles begins, where the release has one."""
    path = release / "vllm/v1/worker/gpu_worker.py"
    home = (release / "vllm" / Path(*WARM_UP.home.split(".")[1:])).with_suffix(".py")
    assert [each.arg for each in function(home, WARM_UP.name).args.args] == ["worker"]
    imported = (
        f"{node.module}.{alias.name}"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
    assert f"{WARM_UP.home}.{WARM_UP.name}" in imported
    names = ("_compile_or_warm_up_model", "compile_or_warm_up_model")
    inner = names[0] if names[0] in path.read_text() else names[1]
    order = list(calls(function(path, inner)))
    places = [
        order.index(name)
        for name in ("_dummy_run", "maybe_remove_all_loras", WARM_UP.name, "capture_model")
    ]
    assert places == sorted(places)
    monitor = [name for name in order if "jit_monitor" in name]
    assert all(order.index(name) > places[-1] for name in monitor)


def step_of(release: Path) -> str:
    """The runner's step with its own arguments, which runs the kernels of so many tokens."""
    node = function(release / "vllm/v1/worker/gpu_model_runner.py", "_dummy_run")
    node.body = ast.parse("assert ACTIVE\nforward(num_tokens)").body
    node.decorator_list, node.returns = [], None
    for each in (*node.args.args, *node.args.kwonlyargs):
        each.annotation = None
    names = [each.arg for each in node.args.args]
    flag = "activate_lora" if "activate_lora" in names else "num_active_loras"
    return ast.unparse(node).replace("ACTIVE", f"{flag} and skip_eplb and (not remove_lora)")


def test_loras_are_chosen_for_rows_by_the_arguments_that_are_given(release):
    mixin = release / "vllm/v1/worker/lora_model_runner_mixin.py"
    names = {each.arg for each in function(mixin, "maybe_dummy_run_with_lora").args.args}
    assert names >= {"lora_config", "num_scheduled_tokens", "num_sampled_tokens", "remove_lora"}
    assert names & {"activate_lora", "num_active_loras"}
    runner = release / "vllm/v1/worker/gpu_model_runner.py"
    assert "compute_logits" in calls(function(runner, "_dummy_sampler_run"))


def test_the_second_runner_takes_what_it_is_given(release):
    path = release / "vllm/v1/worker/gpu/model_runner.py"
    if not path.exists():
        pytest.skip("it has no second runner")
    arguments = function(path, "_dummy_run").args
    assert arguments.kwarg is not None
    assert arguments.args[1].arg == "num_tokens"


def tuned(folder: Path) -> Path:
    """Files in which each kernel has other configurations at 32, 64, 100 and 200 tokens."""
    tables: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        table = tables.setdefault(kind.file_name(GPU), {})
        for number, row in enumerate((1, 32, 64, 100, 200)):
            shape = replace(kind, num_tokens=row)
            config = replace(default_config(shape), block_m=(16, 32, 16, 64, 32)[number])
            assert isinstance(config, KernelConfig)
            put_leaf(table, shape.lookup_key, config.as_dict())
    for name, table in tables.items():
        (folder / name).write_text(json.dumps(table))
    return folder


def late(release: Path, folder: Path, kinds: list[KernelShape], warmed: list[int]) -> Compiled:
    sizes = WarmedSizes(tuple(warmed), (range(max(CAPTURED) + 1, MOST),))
    read = read_folder(folder, [GPU], None, release.name)
    kernels = list(served_kernels(GPU, dict.fromkeys(kinds, sizes), read))
    return Compiled.of(kernels, release=release.name, target=H100)


def test_nothing_is_compiled_late_after_the_steps(release, tmp_path, prepared):
    folder = tuned(tmp_path)
    step = step_of(release)
    # 0.11.1 looks up w2 with its two sizes the other way round, and 0.15.1 what is not launched.
    kinds = [each for each in KINDS if not each.op.is_moe or release.name > "0.2"]
    begin, _, _ = SCRIPT.rpartition("kept = [")
    lines = prepared.run(
        begin.replace("install()\ninstall()\n", "")
        + WORKER.replace("MOST", str(MOST)).replace("CAPTURED", str(CAPTURED)),
        path=[release],
        given=[GPU, [[kind.as_dict() for kind in kinds], step]],
        variables={"VLLM_TUNED_CONFIG_FOLDER": str(folder), "AUTOTUNE_WARM": "1"},
    )
    first, *more, removed = json.loads(lines[-1])
    assert (first, removed) == (MOST, 0)
    assert more == sorted(more, reverse=True)
    assert 0 < len(more) < 60  # of 167: small batches of few experts need many kernels
    before = late(release, folder, kinds, [*CAPTURED, MOST])
    after = late(release, folder, kinds, [*CAPTURED, MOST, *more])
    assert len(before.late) > len(more) / 3
    assert not after.late, after.late_text()
