"""What a server's flags change, against each release's own files: nothing here is imported whole.

Functions are taken out of vLLM's files and run with the little that they use.
"""

from __future__ import annotations

import ast
import enum
import itertools
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.launch.release import FIRST_ONE_SHOT_RELEASE, SERVER_FLAGS, check_flag, is_since
from autotune.launch.shape import KernelShape, launched_loras
from autotune.measure.kernels.dependent import dependent_launch
from autotune.measure.kernels.layout import shares_weights
from autotune.plan.batches import Batches
from autotune.plan.models import MOE_BACKENDS, Server
from tests.measure.kernels.cases import A100, H100, MOE_OPS, expand_shape, moe_shape, shrink_shape
from tests.profiles import examples
from tests.vllm.conftest import need
from tests.vllm.process import Prepared
from tests.vllm.releases import RELEASES
from tests.vllm.test_provider import INTERPRET, run_with

pytestmark = pytest.mark.vllm

#: The functions are taken out once for all examples.
fixed = settings(
    max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    return need(request.param, request.config)


def has(release: Path, first: str) -> bool:
    return is_since(release.name, first)


def source_of(release: Path, file: str, name: str) -> str:
    """The source of a function of one of vLLM's files."""
    text = (release / "vllm" / file).read_text()
    found = next(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return textwrap.dedent(ast.get_source_segment(text, found, padded=True) or "")


def taken(release: Path, file: str, name: str, uses: Mapping[str, Any] | None = None) -> Any:
    """A function of one of vLLM's files, with what it uses."""
    found = dict(uses or {})
    code = f"from __future__ import annotations\n{source_of(release, file, name)}"
    exec(compile(code, file, "exec"), found)  # noqa: S102 - vLLM's own code is what is tested
    return found[name]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# ------------------------------------------------------------------ which release has which flag


@pytest.mark.parametrize(
    "name", ["specialize_active_lora", "mixed_moe_lora_format", "moe_shared_loras"]
)
def test_a_flag_of_the_lora_config_is_refused_where_a_release_lacks_it(release, name):
    field = name if name.startswith("spec") else f"enable_{name}"
    _is_refused_where_lacking(release, name, f"    {field}: bool", "config/lora.py")


@pytest.mark.parametrize(
    ("name", "text", "file"),
    [
        ("dual_stream", "VLLM_LORA_ENABLE_DUAL_STREAM", "envs.py"),
        ("target_modules", "    target_modules: ", "config/lora.py"),
        ("expert_parallel", "all2all_backend", "lora/layers/fused_moe.py"),
        ("data_parallel", "set_lora_context", "lora/layers/fused_moe.py"),
    ],
)
def test_a_flag_is_refused_where_a_release_lacks_it(release, name, text, file):
    _is_refused_where_lacking(release, name, text, file)


def _is_refused_where_lacking(release: Path, name: str, text: str, file: str) -> None:
    if text in (release / "vllm" / file).read_text():
        check_flag(name, release.name)
        return
    with pytest.raises(InputError, match=f"vLLM {release.name} has no {SERVER_FLAGS[name][0]}"):
        check_flag(name, release.name)


# ------------------------------------------------------------------ captured batch sizes


class _Modes:
    """Full graphs for decoding and piecewise ones for the rest: vLLM's default."""

    FULL, PIECEWISE, NONE = "full", "piecewise", "none"

    def decode_mode(self) -> str:
        return self.FULL

    def mixed_mode(self) -> str:
        return self.PIECEWISE

    def separate_routine(self) -> bool:
        return True


Captured = Callable[[dict[str, int], list[int] | None], set[int]]


@pytest.fixture
def captured(release: Path, monkeypatch: pytest.MonkeyPatch) -> Captured:
    """The batch sizes at which a release captures graphs."""
    platforms = ModuleType("vllm.platforms")
    vars(platforms)["current_platform"] = SimpleNamespace(
        is_device_capability_family=lambda _number: False
    )
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    quiet = SimpleNamespace(warning=lambda *_: None, warning_once=lambda *_: None)
    uses = {"CUDAGraphMode": _Modes, "logger": quiet, "round_up": round_up}
    choose = taken(release, "config/vllm.py", "_set_cudagraph_sizes", uses)
    adjust = taken(release, "config/compilation.py", "adjust_cudagraph_sizes_for_spec_decode", uses)
    newer = None
    if has(release, "0.29"):
        more: dict[str, Any] = {"defaultdict": defaultdict, "product": itertools.product}
        more |= {"groupby": itertools.groupby, "BatchExecutionDescriptor": _descriptor}
        newer = taken(release, "v1/worker/gpu/cudagraph_utils.py", "_init_candidates", uses | more)

    def ask(limits: dict[str, int], given: list[int] | None) -> set[int]:
        server = _server(limits, given)
        choose(server)
        config = server.compilation_config
        query = 1 + limits.get("speculative_tokens", 0)
        if newer is not None:
            return _launched(newer, server, query)
        config.adjust = adjust
        if query > 1:
            extra = () if has(release, "0.32") else (1,)
            adjust(config, query, *extra)
        return set(config.cudagraph_capture_sizes)

    return ask


def _descriptor(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"uniform_token_count": None, **values})


def _server(limits: dict[str, int], given: list[int] | None) -> SimpleNamespace:
    """A ``VllmConfig`` with the fields that the rule reads."""
    drafts = limits.get("speculative_tokens", 0)
    speculative = SimpleNamespace(
        num_speculative_tokens=drafts, uses_dynamic_speculative_decoding=lambda: False
    )
    return SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=SimpleNamespace(
            cudagraph_mode=_Modes(),
            max_cudagraph_capture_size=limits.get("max_cudagraph_capture_size"),
            cudagraph_capture_sizes=given,
            pass_config=SimpleNamespace(enable_sp=False, enable_sequence_parallelism=False),
            post_init_cudagraph_sizes=lambda: None,
            compute_bs_to_padded_graph_size=lambda: None,
        ),
        scheduler_config=SimpleNamespace(
            max_num_seqs=limits["max_num_seqs"],
            max_num_batched_tokens=limits["max_num_batched_tokens"],
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        speculative_config=speculative if drafts else None,
        num_speculative_tokens=drafts,
        uniform_decode_query_len=1 + drafts,
        performance_mode="balanced",
        cache_config=SimpleNamespace(use_kda_recoverssm=False),
    )


def _launched(init: Callable[[Any], None], server: SimpleNamespace, query: int) -> set[int]:
    """The sizes of the graphs that the newer model runner captures."""
    runner = SimpleNamespace(
        compilation_config=server.compilation_config,
        vllm_config=server,
        cudagraph_mode=_Modes(),
        max_num_reqs=server.scheduler_config.max_num_seqs,
        decode_query_len=query,
        lora_capture_cases=[0, 9],
        varlen_decode=False,
        _maybe_ubatch_twin=lambda _: None,
        _capture_descs={},
        _candidates={},
    )
    init(runner)
    return {one.num_tokens for each in runner._capture_descs.values() for one in each}


@fixed
@given(data=st.data())
def test_the_captured_batch_sizes_are_a_releases_own(release, captured, data):
    seqs = data.draw(st.integers(1, 1200))
    limits = {"max_num_seqs": seqs, "max_num_batched_tokens": data.draw(st.integers(seqs, 9000))}
    drafts = data.draw(st.integers(0, 16))
    limits |= {"speculative_tokens": drafts} if drafts else {}
    given_ = data.draw(st.none() | st.lists(st.integers(1, 600), min_size=1, unique=True))
    if given_ is None and data.draw(st.booleans()):
        limits["max_cudagraph_capture_size"] = data.draw(st.integers(1, 1000))
    own = None if given_ is None else tuple(given_)

    try:
        wanted = captured(limits, given_)
    except ValueError:
        wanted = set()
    try:
        got = Batches.of(**limits, cudagraph_capture_sizes=own, release=release.name).captured
    except InputError:
        got = ()

    assert set(got) == wanted
    assert list(got) == sorted(got)


@pytest.mark.parametrize("max_loras", [1, 2, 3, 5, 8, 16, 31])
def test_a_specialized_grid_has_a_number_of_loras_that_is_captured(release, max_loras):
    if not has(release, SERVER_FLAGS["specialize_active_lora"].since):
        return
    counts = taken(release, "lora/utils.py", "get_captured_lora_counts")(max_loras, True)

    for active in range(1, max_loras + 2):
        assert launched_loras(active, max_loras) == min(n for n in counts if n >= active)


# ------------------------------------------------------------------ experts


def test_experts_in_mxfp4_are_padded_as_by_each_release(release):
    file = "model_executor/layers/fused_moe/oracle/mxfp4.py"
    if not (release / "vllm" / file).exists():
        return  # read by hand in ``create_weights``
    names = {"triton": "TRITON", "marlin": "MARLIN", "flashinfer_trtllm": "FLASHINFER_TRTLLM"}
    text = source_of(release, file, "mxfp4_round_up_hidden_size_and_intermediate_size")
    words = {word.partition(".")[2] for word in text.replace("(", " ").replace(":", " ").split()}
    members = {each.strip(",)") for each in words if each.isupper() or "_" in each}
    backend = enum.Enum("Backend", sorted({*names.values(), *filter(None, members)}))  # type: ignore[misc]
    platform = SimpleNamespace(is_xpu=lambda: False, is_rocm=lambda: False)
    groups = {"TRTLLM_BACKENDS": (backend["FLASHINFER_TRTLLM"],), "B12X_BACKENDS": ()}
    uses = {"Mxfp4MoeBackend": backend, "round_up": round_up, "current_platform": platform}
    uses |= groups | {"FLASHINFER_MOE_EP_MXFP4_BACKENDS": (), "OCP_MX_BLOCK_SIZE": 32}
    pad = taken(release, file, "mxfp4_round_up_hidden_size_and_intermediate_size", uses)

    if not has(release, SERVER_FLAGS["flashinfer_trtllm"].since):
        del names["flashinfer_trtllm"]
    for ours, its in names.items():
        server = Server(rank=16, max_loras=8, moe_backend=ours, release=release.name)
        padding = server.padding()
        for size in (2880, 1440, 720, 360, 3072):
            rounded = round_up(size, padding.hidden), round_up(size, padding.intermediate)
            assert pad(backend[its], size, size) == rounded, ours


def test_without_the_flag_experts_in_mxfp4_run_as_a_release_chooses(release):
    file = "model_executor/layers/quantization/mxfp4.py"
    if "def get_mxfp4_backend_with_lora" not in (release / "vllm" / file).read_text():
        return  # the experts' own class says it there
    unset = "VLLM_MXFP4_USE_MARLIN: bool | None" in (release / "vllm" / "envs.py").read_text()
    hopper = SimpleNamespace(is_cuda=lambda: True, get_device_capability=lambda: (9, 0))
    uses = {
        "Mxfp4Backend": SimpleNamespace(MARLIN="marlin", TRITON="triton", NONE=""),
        "current_platform": hopper,
        "has_triton_kernels": lambda: True,
        "is_torch_equal_or_newer": lambda _: True,
        "envs": SimpleNamespace(VLLM_MXFP4_USE_MARLIN=None if unset else False),
        "logger": SimpleNamespace(info_once=lambda *_: None),
    }
    chosen = taken(release, file, "get_mxfp4_backend_with_lora", uses)()
    asked, unasked = (
        Server(rank=16, max_loras=8, moe_backend=backend, release=release.name).padding()
        for backend in (chosen, None)
    )
    assert asked == unasked


def test_every_backend_has_lora_in_the_newest_release():
    for backend in MOE_BACKENDS:
        assert Server(rank=16, max_loras=8, moe_backend=backend).padding() == MOE_BACKENDS[backend]


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("flashinfer_trtllm", "model_executor/layers/fused_moe/oracle/mxfp4.py", "trtllm_lora_moe"),
        ("triton", "model_executor/layers/quantization/mxfp4.py", "if envs.VLLM_MXFP4_USE_MARLIN"),
    ],
)
def test_kernels_of_mxfp4_are_refused_where_a_release_has_no_lora_on_them(
    release, name, file, text
):
    if name == "triton" and has(release, "0.19"):
        return  # they are the experts' own class there
    path = release / "vllm" / file
    if path.exists() and text in path.read_text():
        check_flag(name, release.name)
        return
    with pytest.raises(InputError, match=f"vLLM {release.name} has no LoRA on"):
        check_flag(name, release.name)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_gate_and_up_are_apart_where_a_releases_manager_says_so(release, mixed, shared):
    text = (release / "vllm/lora/model_manager.py").read_text() if has(release, "0.22") else ""
    rules = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "self._is_3d_moe_model"
    ]
    if not rules or (shared and not has(release, SERVER_FLAGS["moe_shared_loras"].since)):
        return
    model = SimpleNamespace(is_3d_moe_weight=True)
    manager = SimpleNamespace(
        _is_moe=True,
        model=model,
        _enable_mixed_moe_lora_format=mixed,
        _enable_moe_shared_loras=shared,
    )
    in_one = eval(ast.unparse(rules[0]), {"self": manager, "is_moe": True})  # noqa: S307 - vLLM's

    server = Server(
        rank=16,
        max_loras=8,
        mixed_moe_lora_format=mixed,
        moe_shared_loras=shared,
        release=release.name,
    )
    assert server.divides_w13 == (not in_one)


def test_data_parallel_servers_divide_experts_as_more_gpus_would(release):
    file = "model_executor/layers/fused_moe/config.py"
    name = "flatten_tp_across_dp"
    text = (release / "vllm" / file).read_text()
    ranks = {"get_tensor_model_parallel_rank": lambda: 0}
    if f"{name}_and_pcp" in text:
        divided, _ = taken(release, file, f"{name}_and_pcp", {**ranks, "staticmethod": None})(
            4, 2, 0, 1, 0
        )
    else:
        divided, _ = taken(release, file, name, ranks)(4, 2, 0)

    assert divided == Server(rank=16, max_loras=8, tensor_parallel=4, data_parallel=2).expert_gpus


# ------------------------------------------------------------------ LoRA beside the base layer


#: The classes of vLLM's LoRA layers, by their files.
LAYERS = {
    "column": ("column_parallel_linear", "ColumnParallelLinearWithLoRA"),
    "several": ("column_parallel_linear", "MergedColumnParallelLinearWithLoRA"),
    "row": ("row_parallel_linear", "RowParallelLinearWithLoRA"),
    "replicated": ("replicated_linear", "ReplicatedLinearWithLoRA"),
}


def _runs_beside(release: Path, kind: str) -> bool:
    """Whether a layer's ``apply`` is that of all linear layers, or goes on to it."""
    file, name = LAYERS[kind]
    tree = ast.parse((release / f"vllm/lora/layers/{file}.py").read_text())
    one = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)
    own = [n for n in one.body if isinstance(n, ast.FunctionDef) and n.name == "apply"]
    return not own or "super().apply" in ast.unparse(own[0])


def test_the_layers_that_run_beside_their_lora_are_known(release):
    if not has(release, SERVER_FLAGS["dual_stream"].since):
        return
    server = Server(rank=16, max_loras=8, dual_stream=True, release=release.name)

    assert server.adds_to_base(1) == (not _runs_beside(release, "column"))
    assert server.adds_to_base(1) == (not _runs_beside(release, "row"))
    assert server.adds_to_base(3) == (not _runs_beside(release, "several"))
    assert not _runs_beside(release, "replicated")
    base = (release / "vllm/lora/layers/base_linear.py").read_text()
    assert "add_inputs=False" in base


# ------------------------------------------------------------------ launches

#: What a release's wrappers launch for each shape, as on two GPUs.
LAUNCHED = """
answers = []
for shape in shapes:
    of_shape = []
    for target in (A100, H100):
        seen = []
        inputs = inputs_without_memory(shape, pair=kernels.runs_pair(shape))
        kernels._call_as_on(
            target, inputs, make_config(shape.op),
            lambda kernel, grid, given, named: seen.append(
                [grid, dict(zip(kernel.arg_names, given)) | named]
            ),
        )
        grid, named = seen[0]
        plain = (bool, int, type(None))
        of_shape.append([grid, {n: v for n, v in named.items() if isinstance(v, plain)}])
    answers.append(of_shape)
print(json.dumps(answers))
"""

_LAYER = {"hidden_size": 64, "num_experts": 2, "top_k": 2, "intermediate_size": 48, "max_loras": 3}
_FEW = {"num_tokens": 6, "max_loras": 3}


def _dense_shapes(**flags: Any) -> list[KernelShape]:
    return [
        shrink_shape(**_FEW, active_loras=2, **flags),
        expand_shape(**_FEW, active_loras=2, **flags),
    ]


def _moe_shapes(rank: int, **flags: Any) -> list[KernelShape]:
    table = {**_LAYER, "rank": rank, "num_tokens": 6, "active_loras": 2} | flags
    return [moe_shape(op, **table) for op in MOE_OPS]


Launches = dict[KernelShape, list[Any]]


@pytest.fixture(scope="module")
def launches(
    release: Path, tmp_path_factory: pytest.TempPathFactory, prepared: Prepared
) -> Launches:
    """What a release launches for shapes with each of the flags that it has."""
    shapes = [*_dense_shapes(dual_stream=True), *_dense_shapes()]
    if has(release, SERVER_FLAGS["specialize_active_lora"].since):
        shapes += _dense_shapes(specialize_active_lora=True)
    if has(release, FIRST_ONE_SHOT_RELEASE):
        shapes += _moe_shapes(16, specialize_active_lora=True)[1::2]
        shapes += _moe_shapes(256, specialize_active_lora=True)[:2]
    if has(release, SERVER_FLAGS["moe_shared_loras"].since):
        shapes += _moe_shapes(256, shared_loras=True)
    answers = run_with(prepared, release, LAUNCHED, tmp_path_factory.mktemp("cache"), shapes=shapes)
    return dict(zip(shapes, answers, strict=True))


@pytest.mark.slow
def test_dense_kernels_are_dependent_launches_where_lora_has_its_own_stream(release, launches):
    has_flag = has(release, SERVER_FLAGS["dual_stream"].since)
    for shape, answers in launches.items():
        for target, (_, named) in zip((A100, H100), answers, strict=True):
            if shape.op.is_moe or "USE_GDC" not in named:
                continue
            ours = dependent_launch(shape, target.capability)["use_gdc"] and has_flag
            always = not has(release, "0.14") and target is H100  # whatever the server says
            assert named["USE_GDC"] == named["launch_pdl"] == (ours or always)


@pytest.mark.slow
def test_a_specialized_grid_is_a_releases_own(launches):
    for shape, answers in launches.items():
        if shape.specialize_active_lora:
            assert [grid[-1] for grid, _ in answers] == [shape.lora_slots] * 2 == [2, 2]


@pytest.mark.slow
def test_shared_matrices_have_a_stride_of_zero_between_experts(launches):
    for shape, answers in launches.items():
        for _, named in answers if shape.shared_loras else []:
            assert (named["stride_be"] == 0) == shares_weights(shape)


@pytest.mark.slow
def test_a_releases_kernels_compute_what_the_reference_does_with_flags(
    release, tmp_path, interpreting
):
    flags = [{"dual_stream": True}, {"specialize_active_lora": True}]
    shapes = _dense_shapes(dual_stream=True, specialize_active_lora=True)
    if has(release, SERVER_FLAGS["moe_shared_loras"].since):
        flags.append({"shared_loras": True})
    if has(release, FIRST_ONE_SHOT_RELEASE):
        both = {name: True for each in flags for name in each}
        shapes += _moe_shapes(16, **both)[1::2]
    problems = run_with(interpreting, release, INTERPRET, tmp_path, shapes=shapes)

    assert problems == [""] * len(shapes) * 2
