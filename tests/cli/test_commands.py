"""What each command does when all is well, and what its help says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import typer

from autotune.cli.commands import app
from autotune.version import __version__
from tests.patience import PATIENCE_S
from tests.recordings import BEST

FILES = [
    "NVIDIA_Test_GPU_EXPAND_TRUE.json",
    "NVIDIA_Test_GPU_SHRINK.json",
    "NVIDIA_Test_GPU_provenance.json",
]
HAS_GPU = torch.cuda.is_available()
GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)  # type: ignore[attr-defined]


def options_of(name: str):
    return GROUP.commands[name].params  # type: ignore[attr-defined]


# ------------------------------------------------------------------ run


@pytest.mark.slow
def test_a_replay_writes_the_files_that_vllm_loads_and_says_where(autotune, recording):
    ended = autotune.in_a_new_process("run", "--replay", recording, "--trials", 60)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert sorted(autotune.files()) == FILES
    assert f"VLLM_TUNED_CONFIG_FOLDER={autotune.folder / 'tuned'}" in ended.out
    shrink = json.loads(autotune.files()["NVIDIA_Test_GPU_SHRINK.json"])
    assert BEST.items() <= shrink["9"]["3"]["16"]["4096"]["16"].items()
    assert (autotune.folder / "autotune.db").exists()


@pytest.mark.slow
def test_the_table_at_the_end_has_a_row_for_every_shape(autotune, recording):
    ended = autotune("run", "--replay", recording, "--trials", 12)
    table = ended.out.split("\n\n")[1].splitlines()
    assert table[0].split()[:2] == ["op", "layer"]
    assert [row.split()[0] for row in table[1:]] == ["shrink", "expand"]


def test_what_is_tuned_and_where_it_goes_can_be_chosen_by_flags(autotune, recording):
    ended = autotune(
        *("run", "--replay", recording, "--op", "expand", "--trials", 8, "--sampler", "random"),
        *("--storage", "sqlite:///own.db", "--output", "own", "--time-budget", "10m"),
    )
    assert ended.code == 0, ended.err
    assert sorted(autotune.files("own")) == [FILES[0], FILES[2]]
    assert sorted(path.name for path in autotune.folder.iterdir()) == ["own", "own.db"]


@pytest.mark.slow
def test_the_same_seed_makes_the_same_bytes(autotune, recording):
    # In two processes: Python orders sets of strings differently in each.
    for output, call in {"first": autotune, "second": autotune.in_a_new_process}.items():
        call(
            *("run", "--replay", recording, "--trials", 15, "--seed", 5),
            *("--output", output, "--storage", f"sqlite:///{output}.db"),
        )
    assert autotune.files("first") == autotune.files("second")


@pytest.mark.slow
def test_the_same_command_again_measures_nothing_and_changes_nothing(autotune, recording):
    first = autotune("run", "--replay", recording, "--trials", 15)
    files = autotune.files()
    again = autotune("run", "--replay", recording, "--trials", 15)
    assert (again.code, again.out) == (0, first.out)
    assert autotune.files() == files


@pytest.mark.slow
def test_more_trials_go_on_from_the_earlier_ones(autotune, recording):
    autotune("run", "--replay", recording, "--trials", 15)
    ended = autotune("run", "--replay", recording, "--trials", 30)
    assert "30 trials" in ended.out
    provenance = json.loads(autotune.files()[FILES[2]])
    (entry,) = provenance["entries"][FILES[1]].values()
    assert entry["trials"] == 30


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a CUDA device is here: run would measure on it")
def test_without_a_gpu_run_says_so_and_replays_the_shipped_recording(autotune):
    ended = autotune("run", "--trials", 5, "--tokens", 1)
    assert ended.code == 0, ended.err
    first = ended.out.splitlines()[0]
    assert first.startswith("No GPU here: replaying the recording of a NVIDIA H100")
    assert set(autotune.files()) == {
        "NVIDIA_H100_80GB_HBM3_EXPAND_TRUE.json",
        "NVIDIA_H100_80GB_HBM3_SHRINK.json",
        "NVIDIA_H100_80GB_HBM3_provenance.json",
    }


@pytest.mark.slow
def test_with_an_effort_a_contest_tells_when_searches_end_and_how_near_the_best(
    autotune, recording
):
    contest = ("compare-samplers", "--replay", recording, "--samplers", "random", "--seeds", 1)
    ended = autotune(*contest, "--effort", "quick")
    assert ended.code == 0, ended.err
    assert ended.out.split("\n")[0].split("  ")[0].strip() == "sampler"
    assert "at the end" in ended.out.splitlines()[0]
    assert "at the end" not in autotune(*contest, "--trials", 10).out
    (found,) = json.loads(autotune(*contest, "--effort", "quick", "--json").out)["samplers"]
    assert 9 <= found["trials"] <= 60


# ------------------------------------------------------------------ export and shapes


@pytest.mark.slow
def test_export_writes_the_files_of_a_run_again(autotune, recording):
    autotune("run", "--replay", recording, "--trials", 15)
    ended = autotune("export", "--output", "again")
    assert ended.code == 0, ended.err
    assert autotune.files("again") == autotune.files()


def test_shapes_as_json_have_the_file_and_the_key_of_each(autotune, recording):
    ended = autotune("shapes", "--json", "--replay", recording)
    assert ended.code == 0, ended.err
    shrink, expand = json.loads(ended.out)
    assert (shrink["file"], shrink["key"]) == ("{gpu}_SHRINK.json", [9, 3, 16, 4096, 16])
    assert (shrink["layer"], shrink["runs"]) == ("", None)  # which no recording says
    assert (expand["file"], expand["key"]) == ("{gpu}_EXPAND_TRUE.json", [9, 3, 64, 16, 4096])


def test_shapes_lists_the_quick_start_study_where_nothing_is_named(autotune):
    ended = autotune("shapes", "--tokens", "1,1024")
    assert ended.code == 0, ended.err
    for layer in ("qkv", "gate_up", "o, down"):
        assert layer in ended.out
    assert list(autotune.folder.iterdir()) == []


def test_shapes_of_a_study_file_take_its_values_and_the_flags(autotune):
    (autotune.folder / "own.toml").write_text(
        '[[shapes]]\nop = "shrink"\nhidden_size = 2048\n[tokens]\ncounts = [4]\n'
    )
    ended = autotune("shapes", "own.toml", "--json", "--rank", 32, "--max-loras", 2)
    assert ended.code == 0, ended.err
    (shape,) = json.loads(ended.out)
    assert shape["key"] == [3, 1, 4, 2048, 32]


# ------------------------------------------------------------------ help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_of_a_command(autotune, name):
    ended = autotune(name, "--help")
    assert ended.code == 0
    text = " ".join(ended.out.split())  # long lines are wrapped
    for option in options_of(name):
        assert option.help, f"{name} {option.name} has no help text"
        assert option.help in text
        assert any(flag in ended.out for flag in (*option.opts, option.metavar))


def test_help_names_every_command_with_what_it_does(autotune):
    ended = autotune.in_a_new_process("--help")
    assert ended.code == 0
    for name in COMMANDS:
        assert name in ended.out
        assert GROUP.commands[name].help[:40] in ended.out  # type: ignore[attr-defined]


def test_the_command_alone_shows_its_help(autotune):
    ended = autotune.in_a_new_process()
    assert "Usage:" in ended.out + ended.err
    assert ended.code == 2


def test_the_version_is_told_with_the_tools_name(autotune):
    ended = autotune("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"autotune {__version__}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["shapes", "--json"]]
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    program = (
        "import sys\n"
        "from autotune.cli import main\n"
        f"sys.argv = ['autotune', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'triton', 'optuna', 'sqlalchemy'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    result = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "heavy: []"
