"""``autotune bench --server``: what it prints, its exit codes, and what becomes of servers."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.cli.serving import lines_of
from autotune.export import VllmExporter
from autotune.plan.models.adapter_tensors import AdaptedLayer
from autotune.serve.gains import Predicted
from autotune.serve.outputs import Compared
from autotune.serve.random_adapter import write_adapter
from tests.export.examples import H100, qkv_shrink, selection
from tests.patience import PATIENCE_S
from tests.serve.double import STEPS_MS, install, write_model
from tests.serve.test_gains import figures, row


@pytest.fixture
def served(autotune, tmp_path, monkeypatch):
    """Runs ``autotune bench --server`` on the double, with a folder of the H100."""
    VllmExporter().export([selection(qkv_shrink())], H100, tmp_path / "tuned", merge=False)
    model = write_model(tmp_path / "model")
    monkeypatch.delenv("VLLM_TUNED_CONFIG_FOLDER", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where logs are kept

    def run(*arguments: object, start: bool = False, folder: Path | None = None, **behaviour):
        packages = install(tmp_path / "packages", **behaviour)
        monkeypatch.setenv("PYTHONPATH", f"{packages}{os.pathsep}{Path(__file__).parents[2]}")
        return (autotune.start if start else autotune)(
            *("bench", folder or tmp_path / "tuned", "--server", "--python", sys.executable),
            *("--model", model, "--rank", 16, "--max-loras", 2, "--repeats", 2),
            *("--output", 40, *arguments),
        )

    return run


def test_the_servers_are_compared_case_by_case(served):
    ended = served("--requests", "1,4", compiles=["_lora_shrink_kernel", "_lora_shrink_kernel"])
    assert ended.code == 0, ended.err
    header, first, second, starts, compiled, counts = ended.out.splitlines()
    assert header.split()[:4] == ["requests", "no", "LoRA", "ms"]
    assert first.split()[:8] == ["1", "6.00", "10.00,", "10.30", "8.00", "99", "->", "125"]
    assert second.split()[5:8] == ["394", "->", "500"]
    assert "+25 to +29 %   faster" in first
    assert re.match(r"Started in: default \d+ s, folder \d+ s, default again \d+ s", starts)
    assert compiled == "Compiled while serving with the folder: _lora_shrink_kernel (2)"
    assert counts == "2 faster, 0 same, 0 slower"
    assert "[2/4] folder: 1 request: 8.00 ms a step, 125 tokens a second" in ended.err
    assert "[2/4] folder: 4 requests: 8.00 ms a step, 500 tokens a second" in ended.err


def test_everything_that_was_measured_is_in_the_json(served):
    ended = served("--requests", "4", "--input", "8,16", "--json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert (told["vllm"], told["gpu"]) == ("0.33.0", "NVIDIA H100 80GB HBM3")
    assert [each["name"] for each in told["engines"]] == list(STEPS_MS)
    assert [row["input"] for row in told["rows"]] == [8, 16]
    row = told["rows"][0]
    assert row["default"]["step_ms"] == pytest.approx(10.0)
    assert row["folder"]["ttft_p99_ms"] == pytest.approx(8.0)
    assert row["folder"]["itl_p99_ms"] == pytest.approx(8.0)
    assert row["saved_ms"] == pytest.approx(2.15)
    assert row["noise_ms"] == pytest.approx(0.3)
    assert row["verdict"] == "faster"


def test_a_folder_that_is_slower_than_both_defaults_ends_with_exit_code_3(served):
    ended = served("--requests", "4", steps_ms=STEPS_MS | {"folder": 11.0, "folder again": 10.9})
    assert ended.code == 3, ended.err
    assert "11.00, 10.90" in ended.out
    assert "slower" in ended.out
    assert ended.out.splitlines()[-1] == "0 faster, 0 same, 1 slower"


def test_a_folder_that_is_slower_only_once_is_the_same(served):
    ended = served("--requests", "4", steps_ms=STEPS_MS | {"folder": 12.0, "folder again": 10.0})
    assert ended.code == 0, ended.err
    assert "[once more] folder again: 4 requests: 10.00 ms a step" in ended.err
    assert ended.out.splitlines()[-1] == "0 faster, 1 same, 0 slower"


def test_a_folder_that_is_slower_within_the_drift_of_the_defaults_is_the_same(served):
    drifting = STEPS_MS | {"default": 10.0, "folder": 11.4, "default again": 11.0}
    ended = served("--requests", "4", steps_ms=drifting)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "0 faster, 1 same, 0 slower"


def test_servers_that_start_at_once_take_turns(served, tmp_path):
    ended = served("--requests", "1,4", "--at-once", compiles=["_lora_shrink_kernel"])
    assert ended.code == 0, ended.err
    turns = (tmp_path / "packages" / "vllm" / "turns").read_text().splitlines()
    names, rooms = zip(*(turn.rsplit(" ", 1) for turn in turns), strict=True)
    assert list(names) == [*STEPS_MS] * 6  # two cases, each once for nothing and twice for its time
    assert set(rooms) == {str(2**30)}
    _, first, second, starts, compiled, counts = ended.out.splitlines()
    assert first.split()[:8] == ["1", "6.00", "10.00,", "10.30", "8.00", "99", "->", "125"]
    assert second.split()[5:8] == ["394", "->", "500"]
    assert compiled == "Compiled while serving with the folder: _lora_shrink_kernel (1)"
    assert counts == "2 faster, 0 same, 0 slower"
    assert re.match(r"Started in: default \d+ s, folder \d+ s, default again \d+ s", starts)


def test_a_folder_that_seemed_slower_among_others_runs_by_itself(served):
    slow = STEPS_MS | {"folder": 12.0, "folder again": 10.0}
    ended = served("--requests", "4", "--at-once", steps_ms=slow)
    assert ended.code == 0, ended.err
    assert "[once more] folder again: 4 requests: 10.00 ms a step" in ended.err
    assert ended.out.splitlines()[-1] == "0 faster, 1 same, 0 slower"


@pytest.mark.parametrize("dies", list(STEPS_MS))
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_where_one_of_several_dies_the_others_are_ended(served, dies, how):
    ended = served("--requests", 1, "--at-once", dies=dies, how=how)
    assert ended.code == 1
    line = ended.err.splitlines()[-1]
    assert f"the server ({dies}) ended" in line
    assert "CUDA out of memory" in line


@pytest.mark.parametrize(
    ("flag", "room"),
    [("--gpu-memory-utilization=0.2", "None"), ("--kv-cache-memory-bytes=5000", "5000")],
)
def test_what_a_user_says_of_a_gpus_memory_goes_before(served, tmp_path, flag, room):
    served("--requests", 1, "--at-once", "--", flag)
    turns = (tmp_path / "packages" / "vllm" / "turns").read_text().splitlines()
    assert {turn.rsplit(" ", 1)[1] for turn in turns} == {room}


def test_one_that_dies_is_heeded_though_another_still_starts(served):
    line = served("--requests", 1, "--at-once", dies="no LoRA", hangs="default").err
    assert "the server (no LoRA) ended" in line.splitlines()[-1]


def test_servers_over_http_do_not_start_at_once(served):
    ended = served("--requests", 1, "--at-once", "--http")
    assert ended.code == 2
    assert "leave one of them out" in ended.err


def test_the_tokens_a_second_are_drawn(served, tmp_path):
    ended = served("--requests", "1,4", "--plot", tmp_path / "p.html", gpus=1)
    assert ended.code == 0, ended.err
    page = (tmp_path / "p.html").read_text()
    assert all(name in page for name in STEPS_MS)
    assert "output tokens a second" in page


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("flags", "behaviour", "rows", "said"),
    [
        ([], {"dies": "no LoRA"}, 3, "the server (no LoRA) ended"),
        (["--at-once"], {"room": 2}, 2, "4 requests never ran at once"),
        # The first round is for nothing, and two are timed.
        (["--at-once"], {"dies": "folder", "how": "killed", "dies_at": 5}, 1, "SIGKILL ended it"),
    ],
)
def test_what_was_compared_before_an_error_is_printed(
    served, flags, behaviour, rows, said, as_json
):
    as_asked = ["--json"] if as_json else []
    ended = served("--requests", "1,2,4", *flags, *as_asked, **behaviour)
    assert ended.code == 1
    assert said in ended.err.splitlines()[-1]
    if as_json:
        told = json.loads(ended.out)
        assert (len(told["rows"]), told["is_complete"]) == (rows, False)
    else:
        assert ended.out.splitlines()[-1] == f"Ended early: {rows} of 3 rows can be compared."


@pytest.mark.slow
def test_a_server_is_asked_over_http_by_the_client_of_vllm(served):
    ended = served("--http", "--requests", 4, "--repeats", 1)
    assert ended.code == 0, ended.err
    _, row, *_ = ended.out.splitlines()
    assert row.split()[:8] == ["4", "6.00", "10.00,", "10.30", "8.00", "394", "->", "500"]
    assert "1 faster, 0 same, 0 slower" in ended.out
    assert "did not tell what it compiled" in ended.out


def test_a_server_that_dies_over_http_is_told_with_its_log(served):
    line = served("--http", "--requests", 1, dies="default").err.splitlines()[-1]
    assert "the server (default) ended" in line
    assert "CUDA out of memory" in line


def test_requests_without_an_answer_are_told(served):
    line = served("--http", "--requests", 4, unanswered=1).err.splitlines()[-1]
    assert "vLLM's client ended: 3 of 4 requests were answered" in line


@pytest.mark.parametrize(("folder", "code"), [(0.03, 0), (0.4, 3)])
def test_outputs_that_are_wrong_end_with_exit_code_3(served, monkeypatch, folder, code):
    # PyTorch and transformers of an installed vLLM are not at hand to compute them.
    outputs = [Compared(requests=4, default=0.03, again=0.03, folder=folder, effect=3.0)]
    monkeypatch.setattr("autotune.serve.outputs.check_outputs", lambda *_, **__: outputs)
    ended = served("--requests", 4, "--check-outputs")
    assert ended.code == code
    assert ("computes wrong numbers at 4 requests" in ended.out) == (code == 3)
    assert ended.out.splitlines()[-2].split()[-1] == ("wrong" if code else "right")


def test_the_variable_of_a_second_stream_is_that_of_the_flag(served):
    ended = served("--requests", 1, "--dual-stream", needs="VLLM_LORA_ENABLE_DUAL_STREAM")
    assert ended.code == 0, ended.err
    line = served("--requests", 1, needs="VLLM_LORA_ENABLE_DUAL_STREAM").err.splitlines()[-1]
    assert "VLLM_LORA_ENABLE_DUAL_STREAM is not set" in line


def test_adapters_that_have_weights_are_served_as_they_are(served, tmp_path):
    own = write_adapter(tmp_path / "own", [AdaptedLayer("q_proj", 256, 256)], 16, seed=0)
    other = tmp_path / "without-weights"
    other.mkdir()
    (other / "adapter_config.json").write_bytes((own / "adapter_config.json").read_bytes())
    served("--requests", 2, "--adapter", own, "--adapter", other)
    paths = (tmp_path / "packages" / "vllm" / "adapters").read_text().splitlines()
    assert paths[0] == str(own)
    assert str(other) not in paths


def test_where_the_gpu_waits_for_the_processor_a_line_says_so():
    told = Predicted(kernels_ms=6.0, saved_ms=2.0)
    hidden = replace(row(10.0, 10.0, 9.9), predicted=told, no_lora=figures(9.0))
    plain = replace(row(10.0, 10.0, 8.0), predicted=told, no_lora=figures(4.0))
    (marked, line) = lines_of({}, [plain, hidden], at_once=True)[1:3]
    assert marked.startswith("(!) The server saves more or less")
    assert line.startswith("At 8 requests LoRA adds less to a step than its kernels take")
    assert not any("processor" in each for each in lines_of({}, [plain], at_once=True))


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "there is no folder"),
        (["."], "has no file that vLLM reads"),
        (["tuned"], "--server needs a model"),
        (["tuned", "--model", "bare.json", "--rank", 8, "--max-loras", 2], "has no model_type"),
        (["tuned", "--model", "model", "--rank", 8, "--max-loras", 2, "--input", 500], "for 512"),
        (
            ["tuned", "--model", "words.json", "--rank", 8, "--max-loras", 2],
            "words.json: vocab_size must be 8",
        ),
        (["tuned", "--model", "model", "--rank", 8, "--max-loras", 2, "--", "-tp"], "give it as"),
        (["tuned", "--model", "model", "--max-loras", 2, "--adapter", "bare.json"], "bare.json"),
    ],
)
def test_what_is_wrong_is_said_before_vllm_is_looked_for(autotune, tmp_path, arguments, said):
    VllmExporter().export([selection(qkv_shrink())], H100, tmp_path / "tuned", merge=False)
    write_model(tmp_path / "model")
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 1024}
    (tmp_path / "bare.json").write_text(json.dumps(config))
    (tmp_path / "words.json").write_text(
        json.dumps(config | {"model_type": "llama", "vocab_size": "9"})
    )
    names = ("none", ".", "tuned", "model", "bare.json", "words.json")
    here = {name: tmp_path / name for name in names}
    folder, *more = [here.get(each, each) for each in arguments]
    ended = autotune("bench", folder, "--server", "--python", tmp_path / "no-python", *more)
    assert said in ended.has_failed_in_one_line()


def test_an_empty_python_is_not_autotunes_own(served):
    assert "cannot start an empty name" in served("--python", "").has_failed_in_one_line()


def test_without_vllm_one_line_says_what_to_install(autotune, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    bare = tmp_path / "bare"
    bare.symlink_to(os.path.realpath(sys.executable))
    VllmExporter().export([selection(qkv_shrink())], H100, tmp_path / "tuned", merge=False)
    ended = autotune(
        *("bench", tmp_path / "tuned", "--server", "--python", bare),
        *("--model", write_model(tmp_path / "m"), "--rank", 16, "--max-loras", 2),
    )
    assert "pip install vllm there" in ended.has_failed_in_one_line()


def test_without_a_gpu_one_line_says_so(served):
    assert "no CUDA GPU here" in served(gpus=0, gpu="", platform="").has_failed_in_one_line()


def test_a_vllm_for_cpus_is_compared_with_itself(served):
    ended = served("--requests", 1, gpus=0, gpu="", platform="cpu")
    assert ended.code == 0
    assert "built for CPUs" in ended.err


def test_a_folder_of_another_gpu_is_refused(served):
    line = served(gpu="NVIDIA L4").has_failed_in_one_line()
    assert "is for NVIDIA_H100_80GB_HBM3" in line
    assert "NVIDIA L4" in line


def test_a_folder_that_is_not_there_is_refused(served, tmp_path):
    assert "there is no folder" in served(folder=tmp_path / "none").has_failed_in_one_line()


def test_a_folder_without_files_is_refused(served, tmp_path):
    (tmp_path / "hollow").mkdir()
    line = served(folder=tmp_path / "hollow").has_failed_in_one_line()
    assert "has no file that vLLM reads" in line


def test_more_gpus_than_there_are_are_refused(served):
    assert "there are 1 here" in served("--tp", 2).has_failed_in_one_line()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dp", 2], "--dp 2"),
        (["--speculative-tokens", 2], "--speculative-tokens"),
        (["--input", 500], "room for 512 tokens: got 540"),
        (["--", "serve"], "after -- come flags"),
        (["--", "--max-loras", 4], "give it as --max-loras"),
        (["--", "--max_lora_rank=4"], "give it as --rank"),
        (["--", "--max-num-seqs", 2], "--max-num-seqs after --"),
        (["--", "--enable-lora"], "leave it out"),
        (["--", "--no-enable-lora"], "--no-enable-lora after --"),
        (["--", "--no-fully-sharded-loras"], "give it as --fully-sharded before"),
        (["--vllm", "0.28.0"], "leave --vllm out"),
        (["--requests", "4,8", "--max-num-seqs", 4], "8 never run at once with --max-num-seqs 4"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(served, arguments, said):
    ended = served(*arguments)
    assert ended.code == 1
    assert said in ended.err.splitlines()[-1]


def test_a_config_that_vllm_could_not_read_is_refused(served, tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 1024}
    (tmp_path / "bare.json").write_text(json.dumps(config))
    line = served("--model", tmp_path / "bare.json").has_failed_in_one_line()
    assert "has no model_type" in line


def test_requests_that_never_run_at_once_are_refused(served):
    line = served("--requests", 8, room=2).err.splitlines()[-1]
    assert "8 requests never ran at once" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--requests", 4], "--requests is about a server"),
        (["--", "--max-model-len", 4], "what follows -- is about a server"),
    ],
)
def test_flags_of_servers_need_a_server(autotune, arguments, said):
    assert said in autotune("bench", "tuned", *arguments).has_refused_its_usage()


@pytest.mark.parametrize("number", ["0", "a", "", "-1", "1.5", "65537", "9" * 20, "9" * 5000])
@pytest.mark.parametrize("flag", ["--requests", "--repeats"])
def test_numbers_that_no_server_can_be_asked_for_are_refused_at_once(autotune, flag, number):
    said = autotune("bench", "tuned", "--server", flag, number).has_refused_its_usage()
    assert f"'{flag}': must be a whole number from 1 to " in said
    assert len(said) < 500


def test_flags_of_kernels_are_not_for_servers(autotune):
    ended = autotune("bench", "tuned", "--server", "--tokens", 4)
    assert "about single kernels" in ended.has_refused_its_usage()


def test_a_server_without_a_model_is_refused(served, autotune, tmp_path):
    served("--requests", 1)
    ended = autotune("bench", tmp_path / "tuned", "--server", "--python", sys.executable)
    assert "--server needs a model" in ended.has_failed_in_one_line()


# ------------------------------------------------------------------ what becomes of servers


@pytest.mark.parametrize("how", ["raises", "killed"])
def test_a_server_that_dies_is_told_with_the_end_of_its_log(served, how):
    ended = served("--requests", 1, dies="folder", how=how)
    assert ended.code == 1
    line = ended.err.splitlines()[-1]
    assert "the server (folder) ended" in line
    assert "CUDA out of memory" in line
    log = Path(line.rpartition("its whole log is ")[2])
    assert "CUDA out of memory" in log.read_text()
    assert ("SIGKILL" in line) == (how == "killed")


def test_a_server_that_tells_nothing_is_ended(served, monkeypatch):
    monkeypatch.setattr("autotune.serve.child.PATIENCE_S", 1.0)
    monkeypatch.setattr("autotune.serve.child._GRACE_S", 0.1)
    line = served("--requests", 1, hangs="default").err.splitlines()[-1]
    assert "it told nothing for 1 s" in line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_all_that_it_started(served, tmp_path, number):
    process = served("--requests", 1, start=True, hangs="folder")
    pids = tmp_path / "packages" / "vllm" / "pids"
    deadline = time.monotonic() + PATIENCE_S
    while not (pids.exists() and pids.read_text().count(" ")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == "autotune: interrupted"
    for pid in map(int, pids.read_text().split()):
        while _is_running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
