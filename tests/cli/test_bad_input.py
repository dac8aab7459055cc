"""Bad input ends in one clear line, exit code 1, or 2 for the flags themselves."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import sqlite3
from functools import partial
from pathlib import Path

import pytest
import torch

from autotune.store import Store
from tests.absent import without
from tests.recordings import write_recording

HAS_GPU = torch.cuda.is_available()

SHAPE = {"op": '"shrink"', "num_tokens": 16, "hidden_size": 4096, "rank": 16, "max_loras": 8}


def study(**values: object) -> str:
    """A study file of one shape."""
    table = {**SHAPE, **values}
    return "[[shapes]]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())


# ------------------------------------------------------------------ study files

BAD_STUDIES = {
    "an unknown key": (study() + "[search]\ntrails = 5\n", r"unknown key 'trails'.*'trials'"),
    "an unknown table": (study() + "[serach]\ntrials = 5\n", r"unknown key 'serach'.*'search'"),
    "an unknown key of a shape": (study(hiden_size=1), r"unknown key 'hiden_size'.*'hidden_size'"),
    "an op that does not exist": (study(op='"shrnk"'), r"unknown op: got 'shrnk'; use .*shrink"),
    "a dtype that does not exist": (study(dtype='"float8"'), r"'float8'; use bfloat16 or float16"),
    "a negative size": (study(hidden_size=-4096), r"hidden_size must be 1 or more: got -4096"),
    "a size of zero": (study(num_tokens=0), r"num_tokens must be 1 or more: got 0"),
    "a size that is not whole": (study(hidden_size=40.5), r"hidden_size must be a whole .* 40\.5"),
    "a size in quotes": (study(max_loras='"8"'), r"max_loras must be a whole number: got '8'"),
    "a rank that vLLM does not allow": (study(rank=24), r"rank .*vLLM.*: got 24; use 1, 8, 16"),
    "more active LoRAs than there are": (study(active_loras=9), r"active_loras .* got 9 of 8"),
    "trials that are no number": (study() + '[search]\ntrials = "many"\n', r"trials: .* 'many'"),
    "a sampler that does not exist": (study() + '[search]\nsampler = "luck"\n', r"tpe.*'luck'"),
    "an axis that does not exist": (
        study() + "[search.space.expand]\nsplit_k = [1]\n",
        r"unknown key 'split_k'",
    ),
    "no shapes": ("[search]\ntrials = 5\n", r"at least one \[\[shapes\]\] table"),
    "no TOML": ("trials: 5\n", r"not TOML"),
}


@pytest.mark.parametrize(("text", "message"), BAD_STUDIES.values(), ids=BAD_STUDIES)
def test_a_study_file_with(autotune, text, message):
    (autotune.folder / "study.toml").write_text(text)
    line = autotune("shapes", "study.toml").has_failed_in_one_line()
    assert line.startswith("autotune: study.toml: ")
    assert re.search(message, line)


def test_a_study_file_that_is_not_there_is_named(autotune):
    line = autotune.in_a_new_process("run", "study.toml").has_failed_in_one_line()
    assert "cannot read the study file study.toml: No such file or directory" in line
    assert list(autotune.folder.iterdir()) == []


def test_a_study_file_that_is_a_folder_or_no_text_is_named(autotune):
    (autotune.folder / "folder.toml").mkdir()
    (autotune.folder / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert "Is a directory" in autotune("shapes", "folder.toml").has_failed_in_one_line()
    assert "not UTF-8" in autotune("shapes", "bytes.toml").has_failed_in_one_line()


# ------------------------------------------------------------------ flags

WHOLE = r"must be a whole number of at least [01]: got"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--op", "shrnk", r"'shrnk' is not one of 'shrink'"),
        ("--tokens", "1,x", r"must be token counts such as 1,16,64, or auto: got '1,x'"),
        ("--tokens", "1.5", r"must be token counts such as 1,16,64, or auto: got '1\.5'"),
        ("--trials", "0", WHOLE),
        ("--trials", "-5", WHOLE),
        ("--trials", "many", WHOLE),
        ("--max-loras", "0", WHOLE),
        ("--rank", "16.5", WHOLE),
        ("--effort", "much", r"must be one of instant, quick, normal, thorough: got 'much'"),
        ("--sampler", "luck", r"must be one of adaptive, tpe, gp, random, exhaustive: got 'luck'"),
        ("--kernels", "mine", r"must be one of auto, builtin.*: got 'mine'"),
        ("--time-budget", "soon", r"must be a duration such as 90s, 10m or 1h30m: got 'soon'"),
        ("--seed", "-1", WHOLE),
    ],
)
def test_a_flag_with_a_bad_value_is_a_usage_error(autotune, flag, value, message):
    said = autotune("run", flag, value).has_refused_its_usage()
    assert flag in said
    assert re.search(message, said)
    assert list(autotune.folder.iterdir()) == []


def test_an_unknown_flag_is_a_usage_error(autotune):
    assert "--nonsense" in autotune.in_a_new_process("run", "--nonsense").has_refused_its_usage()


def test_kernels_contradict_a_replay(autotune, recording):
    ended = autotune("run", "--replay", recording, "--kernels", "builtin")
    assert "--kernels contradicts --replay" in ended.has_refused_its_usage()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokens", "-1"], r"--tokens: must be a whole number of at least 1: got -1"),
        (["--rank", "24"], r"--rank: must be one of 1, 8, 16, .*: got 24"),
    ],
)
def test_a_value_that_vllm_never_asks_for_is_an_error(autotune, flags, message):
    line = autotune("shapes", *flags).has_failed_in_one_line()
    assert re.search(message, line)


def test_an_op_that_the_study_lacks_is_an_error(autotune):
    (autotune.folder / "study.toml").write_text(study())
    line = autotune("shapes", "study.toml", "--op", "expand").has_failed_in_one_line()
    assert "--op: no shape of expand in study.toml; it has shrink" in line


def test_a_model_flag_alone_is_told_every_flag_that_it_needs(autotune):
    model = Path(__file__).parents[2] / "studies" / "models" / "phi-4.json"
    line = autotune("shapes", "--model", model).has_failed_in_one_line()
    assert "--max-loras and --rank" in line
    assert "[lora]" not in line


def test_a_batch_that_no_server_has_is_warned_of(autotune):
    ended = autotune("shapes", "--tokens", "1,16384,1000000000")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert "a batch of 1000000000 tokens" in line
    given = ("--max-num-batched-tokens", 2_000_000_000)
    assert "warning" not in autotune("shapes", "--tokens", "1,1000000000", *given).out


# ------------------------------------------------------------------ recordings


def test_a_recording_that_is_not_there_is_named(autotune):
    line = autotune("run", "--replay", "r.jsonl.gz").has_failed_in_one_line()
    assert "cannot read the recording r.jsonl.gz: No such file or directory" in line


def test_a_truncated_recording_is_refused_before_anything_is_made(autotune, recording):
    whole = recording.read_bytes()
    recording.write_bytes(whole[: len(whole) // 2])
    line = autotune("run", "--replay", recording).has_failed_in_one_line()
    assert f"{recording} is cut off: copy or record it again" in line
    assert list(autotune.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", r"cannot read the recording .*Not a gzipped file"),
        (gzip.compress(b""), r"is no recording"),
        (
            gzip.compress(b'{"schema": "other/1"}\n'),
            r"schema 'other/1', not 'autotune-recording/1'",
        ),
        (gzip.compress(b"[1, 2]\n"), r"line 1: the whole must be an object: got \[1, 2\]"),
        (gzip.compress(b"{not json\n"), r"line 1: not JSON: it is broken: key must be a string"),
    ],
    ids=["no gzip", "empty", "another schema", "a list", "no JSON"],
)
def test_a_file_that_is_no_recording_is_refused(autotune, content, message):
    (autotune.folder / "r.jsonl.gz").write_bytes(content)
    line = autotune("shapes", "--replay", "r.jsonl.gz").has_failed_in_one_line()
    assert re.search(message, line)


def test_a_shape_that_was_not_recorded_is_an_error_before_anything_is_made(autotune, recording):
    line = autotune("run", "--replay", recording, "--tokens", 17).has_failed_in_one_line()
    assert re.search(r"the recording has no (shrink|expand) m=17", line)
    assert list(autotune.folder.iterdir()) == []


def test_recordings_of_two_gpus_are_not_replayed_together(autotune, recording, tmp_path):
    other = write_recording(tmp_path / "other.jsonl.gz", gpu="NVIDIA Other-GPU")
    line = autotune("run", "--replay", recording, "--replay", other).has_failed_in_one_line()
    assert "gpu NVIDIA Other-GPU, here NVIDIA Test-GPU" in line


# ------------------------------------------------------------------ databases


def test_a_database_of_another_program_is_refused_and_stays_as_it_is(autotune, recording):
    path = autotune.folder / "places.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE moz_places (id WHOLE PRIMARY KEY)")
    connection.close()
    before = path.read_bytes()
    ended = autotune("run", "--replay", recording, "--storage", "sqlite:///places.sqlite")
    line = ended.has_failed_in_one_line()
    assert "is a database of another program (tables moz_places); give another --storage" in line
    assert path.read_bytes() == before
    assert [path.name for path in autotune.folder.iterdir()] == ["places.sqlite"]


def test_a_storage_that_is_no_url_is_refused_with_an_example(autotune, recording):
    ended = autotune("run", "--replay", recording, "--storage", "autotune.db")
    assert "give one like sqlite:///autotune.db" in ended.has_failed_in_one_line()


@pytest.mark.slow
def test_measurements_of_another_environment_are_refused(autotune, recording, tmp_path):
    autotune("run", "--replay", recording, "--trials", 3)
    newer = write_recording(tmp_path / "newer.jsonl.gz", driver="590")
    line = autotune("run", "--replay", newer, "--trials", 3).has_failed_in_one_line()
    assert "measured elsewhere (driver 580, here 590); give another --storage" in line


def test_exporting_from_a_database_that_is_not_there_says_so_and_makes_none(autotune):
    line = autotune("export", "--storage", "sqlite:///new.db").has_failed_in_one_line()
    assert "there is no database new.db; give the --storage of a run" in line
    assert not (autotune.folder / "new.db").exists()


def test_exporting_from_a_database_without_selections_says_how_to_make_some(autotune):
    Store(f"sqlite:///{autotune.folder / 'new.db'}").close()
    line = autotune("export", "--storage", "sqlite:///new.db").has_failed_in_one_line()
    assert "the database holds no finished shape; tune one with autotune run" in line


def limit_files(size: int):
    """Called in a new process, it makes writing beyond so many bytes fail as on a full disk."""

    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_a_full_disk_while_measuring_keeps_what_was_measured(autotune, recording):
    assert autotune("run", "--replay", recording, "--trials", 5).code == 0
    size = (autotune.folder / "autotune.db").stat().st_size
    flags = ("run", "--replay", recording, "--trials", 150)
    line = autotune.in_a_process(*flags, before=limit_files(size + 65_536)).has_failed_in_one_line()
    assert "cannot use the database sqlite:///autotune.db" in line
    ended = autotune("run", "--replay", recording, "--trials", 6)
    assert ended.code == 0, ended.err


# ------------------------------------------------------------------ export folders


def vllms_own(entries: int) -> str:
    """The text of a tuned file with so many entries, which autotune did not write."""
    leaf = {"block_m": 32, "block_n": 16, "block_k": 256, "split_k": 8, "num_warps": 4}
    leaf |= {"num_ctas": 1, "group_size_m": 8, "num_stages": 2}
    by_tokens = {str(tokens): {"8192": {"16": leaf}} for tokens in range(1, entries + 1)}
    return json.dumps({"5": {"1": by_tokens}})


@pytest.mark.slow
def test_a_full_disk_at_export_leaves_the_folder_as_it_was_and_loses_nothing(autotune, recording):
    assert autotune("run", "--replay", recording, "--trials", 5, "--output", "first").code == 0
    theirs = autotune.folder / "tuned" / "NVIDIA_Test_GPU_SHRINK.json"
    theirs.parent.mkdir()
    theirs.write_text(vllms_own(1_000))  # more than the limit, which must let SQLite work
    before = autotune.files()
    limit = limit_files(65_536)
    line = autotune.in_a_process("export", "--merge", before=limit).has_failed_in_one_line()
    assert re.search(r"cannot write .*SHRINK\.json: File too large; .* `autotune export`", line)
    assert autotune.files() == before
    assert autotune("export", "--merge").code == 0


@pytest.mark.slow
def test_an_export_folder_with_files_of_somebody_else_is_refused_and_then_merged(
    autotune, recording
):
    theirs = autotune.folder / "tuned" / "NVIDIA_Test_GPU_SHRINK.json"
    theirs.parent.mkdir()
    theirs.write_text(vllms_own(1))
    ended = autotune("run", "--replay", recording, "--trials", 5)
    line = ended.has_failed_in_one_line()
    assert "NVIDIA_Test_GPU_SHRINK.json" in line
    assert "--merge" in line
    assert autotune.files() == {theirs.name: vllms_own(1).encode()}
    assert not (autotune.folder / "autotune.db").exists()

    again = autotune("run", "--replay", recording, "--trials", 5, "--merge")
    assert again.code == 0, again.err
    table = json.loads(theirs.read_text())
    assert table["5"] == json.loads(vllms_own(1))["5"]
    assert set(table) == {"5", "9"}


# ------------------------------------------------------------------ places that cannot be written


def everything(folder: Path) -> dict[Path, object]:
    """Every path below a folder, with the text of files."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


BAD_PLACES = {
    "an output that is a file": (("--output", "file"), "cannot write file: file is no folder"),
    "an output below a file": (
        ("--output", "file/a/b"),
        "cannot write file/a/b: file is no folder",
    ),
    "an output that leads nowhere": (("--output", "nowhere"), "nowhere is no folder"),
    "an output that is no disk": (("--output", "/proc/tuned"), "cannot write /proc/tuned: "),
    "a recording that is a folder": (("--record", "folder"), "folder: it is a folder; .* another"),
    "a recording in no folder": (("--record", "a/r.gz"), "a/r.gz: there is no folder a; "),
    "a recording that is a device": (("--record", "pipe"), "pipe: it is a device or a pipe"),
    "a recording that is no disk": (("--record", "/proc/r.gz"), "cannot write /proc/r.gz: "),
    "a database that is a folder": (("--storage", "sqlite:///folder"), "folder: Is a directory; "),
    "a database in no folder": (
        ("--storage", "sqlite:///a/b.db"),
        "there is no folder a; .*--stor",
    ),
    "a database on no disk": (("--storage", "sqlite:////proc/a.db"), "cannot write /proc/a.db: "),
}


@pytest.mark.parametrize(("flags", "message"), BAD_PLACES.values(), ids=BAD_PLACES)
def test_a_run_tries_its_places_before_it_measures_and_leaves_nothing(
    autotune, recording, flags, message
):
    (autotune.folder / "file").write_text("mine")
    (autotune.folder / "folder").mkdir()
    (autotune.folder / "nowhere").symlink_to("not there")
    os.mkfifo(autotune.folder / "pipe")
    before = everything(autotune.folder)
    line = autotune("run", "--replay", recording, *flags).has_failed_in_one_line()
    assert re.search(message, line), line
    assert everything(autotune.folder) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("record", "-o", "folder", "--tokens", 1), "cannot write folder: it is a folder; "),
        (("export", "--output", "file"), "cannot write file: file is no folder; "),
        (("report", "-o", "a/b.html"), "there is no folder a; "),
        (("compare-samplers", "-o", "folder"), "cannot write folder: it is a folder; "),
    ],
)
def test_other_commands_try_their_places_before_anything_else(autotune, command, message):
    (autotune.folder / "file").touch()
    (autotune.folder / "folder").mkdir()
    line = autotune(*command).has_failed_in_one_line()
    assert message in line
    assert sorted(path.name for path in autotune.folder.iterdir()) == ["file", "folder"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--output", "full/tuned"), ("--record", "full/r.jsonl.gz")])
def test_a_disk_that_is_full_already_is_noticed_at_the_start(autotune, recording, flags):
    (autotune.folder / "full").mkdir()
    limit = limit_files(4_096)
    ended = autotune.in_a_process("run", "--replay", recording, *flags, before=limit)
    assert "File too large" in ended.has_failed_in_one_line()
    assert [path.name for path in autotune.folder.rglob("*")] == ["full"]


# ------------------------------------------------------------------ no GPU


@pytest.mark.skipif(HAS_GPU, reason="a CUDA device is here: record would measure on it")
def test_recording_without_a_gpu_says_so_and_leaves_no_file(autotune):
    line = autotune("record", "-o", "r.jsonl.gz", "--tokens", 1).has_failed_in_one_line()
    assert "no CUDA GPU here" in line
    assert list(autotune.folder.iterdir()) == []


@pytest.mark.skipif(HAS_GPU, reason="a CUDA device is here: run would measure on it")
@pytest.mark.parametrize("given", ["flag", "study file"])
def test_kernels_that_cannot_be_launched_here_are_not_replaced_by_others(autotune, given):
    (autotune.folder / "study.toml").write_text(study() + '[run]\nkernels = "vllm"\n')
    flags = ["--kernels", "vllm"] if given == "flag" else ["study.toml"]
    line = autotune("run", *flags).has_failed_in_one_line()
    assert re.search(r"no CUDA GPU here .* is of builtin kernels: got --kernels vllm; ", line)
    assert [path.name for path in autotune.folder.iterdir()] == ["study.toml"]


# ------------------------------------------------------------------ parts that are not installed


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("run", "--sampler", "gp"), ("compare-samplers", "--samplers", "random,gp")]
)
def test_a_sampler_whose_library_is_not_installed_is_refused_at_the_start(
    autotune, recording, tmp_path, command
):
    path = without(tmp_path, "scipy")["PYTHONPATH"]
    ended = autotune.in_a_new_process(
        *command, "--replay", recording, variables={"PYTHONPATH": path}
    )
    line = ended.has_failed_in_one_line()
    assert re.search(r"'gp' needs scipy .*; install it with: pip install .*\[gp\]", line)
    assert list(autotune.folder.iterdir()) == []
