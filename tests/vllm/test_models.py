"""The table of architectures beside the model classes of each supported release."""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.launch.release import is_since
from autotune.plan.models.language_model import Model
from autotune.plan.models.modules import Architecture, Module, Split, Wrapper
from autotune.plan.models.older import check_has_lora, made_otherwise
from autotune.plan.models.table import ARCHITECTURES
from tests.conftest import absent
from tests.vllm.conftest import need
from tests.vllm.model_classes import Release, of_kind
from tests.vllm.releases import NEWEST, RELEASES

#: vLLM's classes of a module, by how it is divided.
KINDS = {
    Split.COLUMN: {"ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear"},
    Split.ROW: {"RowParallelLinear"},
    Split.REPLICATED: {
        "ReplicatedLinear",
        "GateLinear",
        "MergedColumnParallelLinear",
        "DeepSeekV2FusedQkvAProj",
        "DeepSeekV2FusedQkvAProjLinear",
    },
    Split.EXPERTS: {"experts"},
    Split.EMBEDDING: {"VocabParallelEmbedding"},
    Split.LOGITS: {"ParallelLMHead"},
}

#: vLLM runs these through their code in ``transformers``, which is not in its files.
BACKEND = "vllm.model_executor.models.transformers"

#: The classes name these, but make others: latent attention where a config has none, experts where
#: it has none, a conditioned norm where it has none, blocks of another model in the same file.
_LATENT = {"q_a_proj", "qkv_proj", "wq_b", "wk_weights_proj"}
NOT_OF_IT = {
    **dict.fromkeys(("AXK1ForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), _LATENT),
    **dict.fromkeys(("MistralLarge3ForCausalLM", "Glm4MoeLiteForCausalLM"), _LATENT),
    # No entry of packed_modules_mapping: vLLM cannot wrap it.
    **dict.fromkeys(("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM"), _LATENT),
    "GraniteMoeSWAForCausalLM": {"input_linear"},
    "GraniteMoeSharedForCausalLM": {"input_linear"},
    "DeepseekForCausalLM": {
        *("kv_b_proj", "fused_qkv_a_proj", "kv_a_proj_with_mqa", "q_a_proj", "q_b_proj"),
        *("q_proj", "wq_b", "wk_weights_proj"),
    },
    "MiniCPM3ForCausalLM": {"qkv_proj", "gate"},
    "MiniCPMForCausalLM": {"gate"},
    "Ministral3ForCausalLM": {"ada_rms_norm_t_cond"},
    "MistralForCausalLM": {"ada_rms_norm_t_cond"},
    # vLLM leaves a router without a gate out by name.
    "NemotronHForCausalLM": {"gate"},
    "PanguEmbeddedForCausalLM": {
        *("kv_b_proj", "fused_qkv_a_proj", "q_b_proj", "q_proj", "kv_a_proj_with_mqa"),
        *("gate", "experts"),
    },
    "Qwen3_5ForCausalLM": {"gate", "shared_expert_gate", "experts"},
    "OPTForCausalLM": {"project_in", "project_out"},
}

#: Embeddings and logits of other names than adapters have; no class lists them.
NEVER_OF_IT = {
    *("embedding", "output_layer", "embed_tokens_per_layer", "output", "lm_head", "embed_tokens"),
}

LANGUAGE_MODELS = {
    name: entry for name, entry in ARCHITECTURES.items() if isinstance(entry, Architecture)
}


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    """Python would look for garbage among the millions of objects that a release is."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session", params=RELEASES)
def release(request) -> Release:
    """The files of each release in turn."""
    if request.param == NEWEST:
        newest: Release = request.getfixturevalue("newest")
        return newest
    return _release(request.param, request.config)


@pytest.fixture(scope="session")
def newest(request) -> Release:
    """The files of the newest release."""
    return _release(NEWEST, request.config)


def _release(version: str, config: pytest.Config) -> Release:
    folder: Path = need(version, config)
    if not (folder / "vllm" / "model_executor" / "models").is_dir():
        what = f"vLLM {version} is here without its models; remove it and get it anew: "
        absent(config, "vllm", f"{what}python -m tests.vllm.fetch")
    return Release(folder, version)


def _in_both(release: Release) -> Iterator[tuple[str, Architecture]]:
    """The language models that have a class with LoRA in a release, other than the backend's."""
    for name, entry in LANGUAGE_MODELS.items():
        found = release.with_lora.get(name)
        if found is not None and not found.module.startswith(BACKEND):
            yield name, entry


def _leaf(module: Module) -> str:
    return module.name.rpartition(".")[2]


def differences(release: Release, name: str, entry: Architecture) -> set[str]:
    """The modules of a language model that a release's class makes otherwise, or not at all."""
    found = release.with_lora[name]
    made, packed = of_kind(release.made(found)), release.packed(found)
    embedded = release.attribute(found, "embedding_modules") or {}
    assert isinstance(embedded, dict)
    return {
        module.name
        for module in entry.modules
        if not made.get(_leaf(module), set()) & KINDS[module.split]
        or not _is_packed_so(module, packed.get(_leaf(module)))
        or (module.split in VOCABULARY and module.only_if_named is (_leaf(module) in embedded))
    }


VOCABULARY = {Split.EMBEDDING, Split.LOGITS}


def _is_packed_so(module: Module, packed: list[str] | None) -> bool:
    """Whether ``packed_modules_mapping`` has the parts of a module as the table has them."""
    if module.split is Split.EXPERTS or module.split in VOCABULARY:
        return True
    return list(module.parts) == packed if module.parts else packed in (None, [_leaf(module)])


@pytest.mark.slow
@pytest.mark.vllm
def test_every_release_makes_the_modules_of_the_table_but_for_known_differences(release):
    for name, entry in _in_both(release):
        logits = {each.name for each in entry.modules if each.split is Split.LOGITS}
        padded = set() if is_since(release.version, "0.12") else logits
        told = made_otherwise(Model(name, entry, {}), release.version)
        assert differences(release, name, entry) | padded == told, name


@pytest.mark.slow
@pytest.mark.vllm
def test_a_model_whose_class_has_no_lora_is_refused_in_every_release(release):
    for name in ARCHITECTURES.keys() & release.registered.keys():
        if name in release.with_lora:
            check_has_lora(name, release.version)
            continue
        with pytest.raises(InputError, match=f"vLLM {release.version} has no LoRA for {name}"):
            check_has_lora(name, release.version)


@pytest.mark.slow
@pytest.mark.vllm
def test_routers_that_experts_call_themselves_are_not_launched(release):
    for name, entry in _in_both(release):
        experts = [each for each in release.made(release.with_lora[name]) if each.kind == "experts"]
        handed = {
            ast.unparse(given.value).removeprefix("self.")
            for each in experts
            for given in each.call.keywords
            if given.arg == "gate" and is_since(release.version, "0.24")
        }
        there = [module for module in entry.modules if module.computed]
        unused = {_leaf(each) for each in there if not each.is_launched(release.version)}
        assert unused == handed & set(map(_leaf, there)), name


@pytest.mark.slow
@pytest.mark.vllm
def test_every_linear_layer_of_a_class_is_in_the_table(newest):
    for name, entry in _in_both(newest):
        there = {_leaf(module) for module in entry.modules}
        made = of_kind(newest.made(newest.with_lora[name]))
        assert made.keys() - there - NOT_OF_IT.get(name, set()) - NEVER_OF_IT == set(), name


@pytest.mark.vllm
def test_the_language_model_of_a_wrapper_is_where_the_table_says(newest):
    for name, entry in ARCHITECTURES.items():
        if isinstance(entry, Wrapper):
            found = newest.with_lora[name]
            (prefix,) = newest.language_model(found)
            assert entry.above.startswith(prefix), name


@pytest.mark.vllm
def test_a_wrapper_packs_the_modules_of_its_language_models_as_the_table_does(newest):
    for name, entry in ARCHITECTURES.items():
        packed = newest.packed(newest.with_lora[name]) if isinstance(entry, Wrapper) else {}
        for text in entry.texts.values() if isinstance(entry, Wrapper) else ():
            for module in text.modules:
                if packed and module.parts and module.split is Split.COLUMN:
                    assert packed.get(_leaf(module)) == list(module.parts), (name, module.name)


@pytest.mark.vllm
def test_more_than_half_of_the_architectures_with_lora_are_known(newest, capsys):
    served = [name for name in newest.generating if name in newest.with_lora]
    known = [name for name in served if name in ARCHITECTURES]
    with capsys.disabled():
        sys.stdout.write(f"\n{len(known)} of {len(served)} architectures with LoRA are known\n")

    assert len(known) >= max(100, len(served) / 2)
    assert set(ARCHITECTURES) == set(known)
