"""``autotune configs``: what comes with autotune, what it covers, and packs."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.export.collection import collected
from autotune.export.packs import MEASUREMENTS, read_pack
from autotune.launch.op import LoraOp
from autotune.plan.study import StudyPlan
from autotune.search.session import Session
from autotune.search.tune import tune
from tests.cli.command import Command
from tests.recordings import EXPAND, SHRINK, write_recording
from tests.search.test_confirming import MeasuringRunner

MODELS = Path(__file__).parents[2] / "studies" / "models"

GPU = "NVIDIA H100 80GB HBM3"

#: The GPU by its name, as there is none here; and the flags of a model that is in its collection.
ON = ("--gpu", GPU)
LLAMA = ("--for", MODELS / "llama-3.1-8b.json", "--rank", 16, "--max-loras", 8)


def test_the_list_has_a_row_for_each_model_and_says_how_many_there_are(autotune):
    ended = autotune("configs")
    assert ended.code == 0
    assert re.search(rf"^{GPU}\s+llama-3.1-8b\s+vllm-0.33.0\s+2026-", ended.out, re.MULTILINE)
    listed = json.loads(autotune("configs", "--json").out)
    models = {each["model"] for each in listed}
    assert f"{len(models)} models in all" in ended.out
    assert {"gpu", "tensor_parallel", "rank", "max_loras", "median", "least"} <= listed[0].keys()


def test_the_path_is_the_folder_that_vllm_reads(autotune):
    ended = autotune("configs", "--path", *ON)
    (folder,) = (each.folder for each in collected() if each.gpu == GPU)
    assert Path(ended.out.rstrip("\n")) == folder


def test_without_a_gpu_the_collections_are_named_to_choose_from(autotune):
    said = autotune("configs", "--path").has_failed_in_one_line()
    assert all(each.gpu in said for each in collected())


@pytest.mark.slow
def test_a_model_that_is_there_is_covered_and_its_folder_answers_as_it_should(autotune):
    tokens = ("--tokens", "1,16,64")
    asked = json.loads(autotune("configs", *LLAMA, *ON, *tokens, "--json").out)
    assert asked["exact"] > 0
    assert asked["far"] == asked["missing"] == asked["stopping"] == 0
    ended = autotune("configs", *LLAMA, *ON, *tokens, "-o", "tuned")
    assert ended.code == 0, ended.err
    flags = ("--model", *LLAMA[1:], *tokens)
    checked = json.loads(autotune("check", "tuned", *flags, "--json").out)
    assert checked["errors"] == 0
    assert [each["outcome"] for each in checked["shapes"]].count("exact") == asked["exact"]
    again = autotune.files()
    assert autotune("configs", *LLAMA, *ON, *tokens, "-o", "tuned").code == 0
    assert autotune.files() == again


def test_what_is_not_covered_is_said_with_the_command_that_tunes_it(autotune):
    flags = ("--rank", 64, "--max-loras", 2, "--tp", 2, "--op", "shrink", "--tokens", "1,7")
    model = MODELS / "qwen2.5-7b.json"
    ended = autotune("configs", "--for", model, *flags, "--no-fully-sharded", *ON)
    assert ended.code == 0
    assert "far: other sizes" in ended.out
    (command,) = re.findall(r"Tune what is not covered: autotune (.*)", ended.out)
    words = shlex.split(command)
    assert words[0] == "run"
    assert "--no-fully-sharded" in words
    shapes = json.loads(autotune("shapes", *words[1:], "--json").out)
    expected = autotune("shapes", "--model", model, *flags, "--no-fully-sharded", "--json")
    assert shapes == json.loads(expected.out)
    assert {each["op"] for each in shapes} == {LoraOp.SHRINK.value}


def test_a_model_at_which_vllm_would_stop_ends_with_3(autotune, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(
        "[lora]\nmax_loras = 8\nrank = 16\n[tokens]\ncounts = [1]\n"
        '[[shapes]]\nop = "shrink"\nhidden_size = 4096\nnum_slices = 7\n'
    )
    ended = autotune("configs", study, *ON)
    assert ended.code == 3
    assert "vLLM would stop" in ended.out
    assert autotune("configs", study, "-o", "tuned").has_failed_in_one_line()


def test_ops_at_which_vllm_would_stop_are_left_out_of_what_is_written(autotune):
    model = ("--for", MODELS / "gpt-oss-120b.json", "--rank", 16, "--max-loras", 8)
    ended = autotune("configs", *model, "--gpu", "NVIDIA H200", "--tokens", "1", "-o", "tuned")
    assert ended.code == 3
    assert "Left out, since vLLM would stop: fused_moe_lora_" in ended.out
    assert "0 stops; 0 errors" in ended.out
    assert not list((autotune.folder / "tuned").glob("*FUSED_MOE*"))


def test_what_is_written_is_checked_for_the_release_that_is_asked_for(autotune):
    release = ("--tokens", "1", "--vllm", "0.26.0")
    ended = autotune("configs", *LLAMA, *ON, *release, "-o", "tuned")
    assert "Checked tuned for vLLM 0.26.0" in ended.out


def test_what_is_not_known_of_a_release_is_said(autotune):
    ended = autotune("configs", *LLAMA, *ON, "--tokens", "1", "--vllm", "0.11.1")
    assert "0.11.1 makes lm_head of this model otherwise" in ended.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu", "NVIDIA X"), "has nothing for a NVIDIA X, only for NVIDIA H100"),
        (("--gpu", "a\x1b[31m"), r"nothing for a a\x1b[31m"),
        (("--path", "--gpu", "NVIDIA X"), "has nothing for a NVIDIA X"),
        ((*LLAMA, "--gpu", "NVIDIA X"), "has nothing for a NVIDIA X"),
        ((*LLAMA, *ON, "--tokens", "1", "-o", "file"), "cannot write file"),
        ((*LLAMA, *ON, "--tokens", "1", "-o", "/proc/x"), "cannot write /proc/x"),
        (("--pack", "none", "-o", "p"), "neither a folder that autotune wrote nor a database"),
        (("--pack", "none.db", "-o", "p"), "none.db"),
        (("--pack", "file.db", "-o", "p"), "file.db"),
        (("--pack", ".", "-o", "p"), "provenance files of 0 GPUs"),
        (("--pack", ".", "-o", "none/p"), "cannot write none/p"),
        (("--pack", ".", "-o", "."), "it is a folder"),
        (("--pack", ".", "-o", "p", "--rank", 16), "--for MODEL"),
    ],
)
def test_bad_input_ends_in_one_line(autotune, flags, message):
    (autotune.folder / "file").write_text("")
    (autotune.folder / "file.db").write_text("no database")
    ended = autotune("configs", *flags)
    assert message in ended.has_failed_in_one_line()
    assert not (autotune.folder / "p").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pack", "x.db"), "--pack needs -o FILE"),
        (("--pack", "x.db", "-o", "p", "--path"), "--path contradicts --pack"),
        ((*LLAMA, "--path"), "--path is the whole folder"),
        (("-o", "tuned"), "-o needs --for MODEL"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(autotune, flags, message):
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", ended_text(autotune, flags)).split())


def ended_text(autotune: Command, flags: tuple[object, ...]) -> str:
    return autotune("configs", *flags).has_refused_its_usage()


def test_a_folder_with_other_content_is_not_written_to(autotune):
    tuned = autotune.folder / "tuned"
    tuned.mkdir()
    name = f"{GPU.replace(' ', '_')}_SHRINK.json"
    (tuned / name).write_text("{}")
    ended = autotune("configs", *LLAMA, *ON, "--tokens", "1", "-o", "tuned")
    assert "holds something else" in ended.has_failed_in_one_line()
    assert (tuned / name).read_text() == "{}"


# ------------------------------------------------------------------ packs


def test_the_folder_of_a_model_is_packed_as_the_collection_has_it(autotune):
    assert autotune("configs", *LLAMA, *ON, "--tokens", "1,16", "-o", "tuned").code == 0
    ended = autotune("configs", "--pack", "tuned", "-o", "mine.zip")
    assert ended.code == 0, ended.err
    packed = read_pack(autotune.folder / "mine.zip").tuned
    (whole,) = (each.tuned for each in collected() if each.gpu == GPU)
    assert packed == {
        name: {text: whole[name][text] for text in of_file} for name, of_file in packed.items()
    }


def test_the_collection_itself_can_be_packed(autotune):
    (one,) = (each for each in collected() if each.gpu == GPU)
    ended = autotune("configs", "--pack", one.folder, "-o", "mine.zip")
    assert ended.code == 0, ended.err
    assert read_pack(autotune.folder / "mine.zip").tuned == one.tuned


def test_an_entry_that_was_edited_by_hand_is_not_packed(autotune):
    assert autotune("configs", *LLAMA, *ON, "--tokens", "1", "-o", "tuned").code == 0
    (path,) = (autotune.folder / "tuned").glob("*_SHRINK.json")
    path.write_text(path.read_text().replace('"num_warps": 4', '"num_warps": 8', 1))
    assert autotune("configs", "--pack", "tuned", "-o", "mine.zip").code == 0
    packed = read_pack(autotune.folder / "mine.zip").tuned[path.name]
    whole = json.loads(autotune.files()[f"{GPU.replace(' ', '_')}_provenance.json"])
    assert len(packed) == len(whole["entries"][path.name]) - 1


#: A batch size that no recording of these tests has.
BETWEEN = 24


def measured_database(folder: Path) -> Path:
    """A database of a run that measured, with a private name for its folder.

    One row was chosen between the tuned batch sizes: nothing but its comparison was measured.
    """
    database = folder / "secret-customer" / "run.db"
    database.parent.mkdir()
    recording = write_recording(
        folder / "private.jsonl.gz", SHRINK, EXPAND, gpu=GPU, provider="vllm"
    )
    runner = MeasuringRunner(recording)
    plan = StudyPlan.of_shapes(runner.shapes).override(
        trials=12, sampler="random", storage=f"sqlite:///{database}"
    )
    with Session(plan, runner) as session:
        first = tune(session)[0].selection
        assert first is not None
        between = replace(first, shape=replace(first.shape, num_tokens=BETWEEN))
        study = session.store.study_of(between.shape, session.runner.environment)
        session.store.keep_selection(study, between)
    return database


@pytest.mark.slow
def test_a_database_is_packed_with_its_measurements_and_nothing_private(autotune, tmp_path):
    database = measured_database(tmp_path)
    ended = autotune("configs", "--pack", database, "-o", "mine.zip")
    assert ended.code == 0, ended.err
    with zipfile.ZipFile(autotune.folder / "mine.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert MEASUREMENTS in contents
    # Of a compressed file the header and the text.
    texts = [*contents.values(), gzip.decompress(contents[MEASUREMENTS])]
    for private in ("secret", "private", str(tmp_path), socket.gethostname(), "run.db", "/tmp"):  # noqa: S108
        assert not any(private.encode() in text for text in texts), private
        assert not any(private in name for name in contents)
    pack = read_pack(autotune.folder / "mine.zip")
    entries = [entry for of_file in pack.tuned.values() for entry in of_file.values()]
    assert {entry.shape.op for entry in entries} == {LoraOp.SHRINK, LoraOp.EXPAND}
    assert BETWEEN in {entry.shape.num_tokens for entry in entries}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", entry.measured_at) for entry in entries)


def test_a_model_names_its_entries_and_leaves_the_others_out(autotune, tmp_path):
    database = measured_database(tmp_path)
    flags = (*LLAMA[:2], "--rank", 16, "--max-loras", 8)
    ended = autotune("configs", "--pack", database, "-o", "mine.zip", *flags)
    assert ended.code == 0, ended.err
    pack = read_pack(autotune.folder / "mine.zip")
    models = {
        (each.model, each.tensor_parallel)
        for of_file in pack.tuned.values()
        for entry in of_file.values()
        for each in entry.tuned_for
    }
    assert models == {("llama-3.1-8b", 1)}
    other = ("--for", MODELS / "phi-4.json", "--rank", 64, "--max-loras", 8)
    ended = autotune("configs", "--pack", database, "-o", "other.zip", *other)
    assert "holds no entry of what the flags name" in ended.has_failed_in_one_line()


def test_what_was_tuned_on_other_kernels_is_not_packed(autotune, recording):
    assert autotune("run", "--replay", recording, "--trials", 5, "--sampler", "random").code == 0
    ended = autotune("configs", "--pack", "autotune.db", "-o", "mine.zip")
    assert "nothing that was tuned on vLLM's kernels" in ended.has_failed_in_one_line()


def test_a_replayed_database_is_not_packed(autotune, tmp_path):
    recording = write_recording(tmp_path / "v.jsonl.gz", gpu=GPU, provider="vllm")
    assert autotune("run", "--replay", recording, "--trials", 5, "--sampler", "random").code == 0
    ended = autotune("configs", "--pack", "autotune.db", "-o", "mine.zip")
    assert "replayed from a recording, not measured" in ended.has_failed_in_one_line()
    assert not (autotune.folder / "mine.zip").exists()


def test_a_folder_of_several_gpus_needs_a_name(autotune):
    assert autotune("configs", *LLAMA, *ON, "--tokens", "1", "-o", "tuned").code == 0
    for path in (autotune.folder / "tuned").iterdir():
        shutil.copy(path, path.with_name(path.name.replace("H100", "H200")))
    ended = autotune("configs", "--pack", "tuned", "-o", "mine.zip")
    assert "provenance files of 2 GPUs" in ended.has_failed_in_one_line()
    ended = autotune("configs", "--pack", "tuned", "-o", "mine.zip", "--gpu", GPU)
    assert ended.code == 0, ended.err
