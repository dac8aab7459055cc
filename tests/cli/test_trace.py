"""``autotune trace`` around a server, and ``--trace`` in the other commands."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.measure.replay import shipped_recording
from autotune.plan.traced import read_trace
from tests.cli.command import AUTOTUNE, Command, Ended, environment
from tests.patience import PATIENCE_S
from tests.trace import server

#: A server that says when it is up, and how many signals came until it ends with 5.
WAITS = """
import signal, time
came = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _: came.append(number))
compile_or_warm_up_model()
print("up", flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.3)
print("came", [int(number) for number in came], flush=True)
sys.exit(5)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return server.package(tmp_path_factory.mktemp("server"))


@pytest.fixture
def run(autotune, package) -> Callable[..., Ended]:
    """Runs a server's script below ``autotune trace``."""

    def run_script(script: str, *flags: object, **variables: str) -> Ended:
        environ = server.environment(package, None, **variables)
        command: Command = autotune
        return command.in_a_process(
            "trace", *flags, "--", *server.command(script), variables=environ
        )

    return run_script


def start(autotune: Command, package: Path, **how: Any) -> subprocess.Popen[str]:
    """``autotune trace`` around a server that waits for a signal."""
    return subprocess.Popen(  # noqa: S603 - our own command
        [*AUTOTUNE, "trace", "--", *server.command(WAITS)],
        cwd=autotune.folder,
        env=environment() | server.environment(package, None),
        text=True,
        **how,
    )


# ------------------------------------------------------------------ the server


def test_it_says_what_was_looked_up_and_what_to_do_next(run, autotune):
    ended = run("print('its own output'); compile_or_warm_up_model(); forward(7)")

    assert ended.code == 0
    assert ended.out == "its own output\n"
    told, start, serving, then = ended.err.splitlines()
    assert "looked up 4 kernels at 4 batch sizes, 64 times: trace.jsonl" in told
    assert start == "Batch sizes, at start: 1, 2, 64"
    assert serving == "Batch sizes, serving: 7"
    assert then == "Tune them: autotune run --trace trace.jsonl"
    assert len(read_trace(autotune.folder / "trace.jsonl").asked) == 16


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("1/0", 1), ("", 0)],
)
def test_the_exit_code_is_the_servers(run, end, code):
    assert run(f"forward(1)\n{end}").code == code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_once(autotune, package, number):
    with start(autotune, package, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)

    assert out == f"came [{int(number)}]\n"
    assert process.returncode == 5
    assert "looked up 4 kernels" in err


def test_ctrl_c_reaches_the_server_from_the_terminal_alone(autotune, package):
    ours, theirs = pty.openpty()

    def on_it() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with start(
        autotune, package, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=on_it
    ) as process:
        os.close(theirs)
        text = _read_until(ours, b"up")
        os.write(ours, b"\x03")
        text += _read_until(ours, b"--trace trace.jsonl")
        process.wait(PATIENCE_S)
    os.close(ours)

    assert b"came [2]" in text
    assert process.returncode == 5


def _read_until(terminal: int, end: bytes) -> bytes:
    text = b""
    deadline = time.monotonic() + PATIENCE_S
    while end not in text and time.monotonic() < deadline:
        text += os.read(terminal, 4096)
    return text


@pytest.mark.slow
def test_a_signal_that_is_ignored_from_the_start_stays_so(autotune, package):
    """``nohup autotune trace … &`` survives the end of its terminal."""

    def as_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with start(autotune, package, stdout=subprocess.PIPE, preexec_fn=as_nohup) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE_S)

    assert out == "came [15]\n"


#: What a server sees of its environment.
ENVIRONMENT = """
import json, os
folder = os.environ["VLLM_TUNED_CONFIG_FOLDER"]
names = ("AUTOTUNE_TRACE", "VLLM_TUNED_CONFIG_FOLDER", "VLLM_PLUGINS")
print(json.dumps([os.listdir(folder), *map(os.environ.get, names)]))
"""


def test_experts_are_looked_up_without_a_folder_of_the_users(run, autotune):
    """An empty folder has vLLM look up MoE layers, and find nothing."""
    held, trace, folder, plugins = json.loads(run(ENVIRONMENT, "-o", "a.jsonl").out)

    assert held == []
    assert not Path(folder).exists()
    assert trace == str(autotune.folder / "a.jsonl")
    assert plugins is None


def test_what_the_user_has_set_stays(run, autotune):
    tuned = autotune.folder / "tuned"
    tuned.mkdir()
    ended = run(ENVIRONMENT, VLLM_TUNED_CONFIG_FOLDER=str(tuned), VLLM_PLUGINS="mine")
    _, _, folder, plugins = json.loads(ended.out)

    assert folder == str(tuned)
    assert plugins == "mine,autotune_trace"


def test_an_older_trace_is_replaced(run, autotune):
    run("forward(1)")
    run("forward(2)")

    sizes = read_trace(autotune.folder / "trace.jsonl").sizes()
    assert sizes == [2]


@pytest.mark.slow
def test_a_trace_is_kept_where_the_server_looks_nothing_up(run, autotune):
    run("forward(1)")
    ended = run("raise SystemExit(3)")

    assert ended.code == 3
    assert "looked up nothing; trace.jsonl is the trace of before" in ended.err
    assert read_trace(autotune.folder / "trace.jsonl").sizes() == [1]
    assert [path.name for path in autotune.folder.glob("trace*")] == ["trace.jsonl"]


def test_a_file_that_is_called_like_an_older_trace_is_left_alone(run, autotune):
    run("forward(1)")
    (autotune.folder / "trace.jsonl.before").write_text("years of work\n")
    run("forward(2)")

    assert (autotune.folder / "trace.jsonl.before").read_text() == "years of work\n"
    assert sorted(each.name for each in autotune.folder.glob("trace*")) == [
        "trace.jsonl",
        "trace.jsonl.before",
    ]


def test_a_link_to_a_trace_stays_one(run, autotune):
    (autotune.folder / "real.jsonl").touch()
    (autotune.folder / "trace.jsonl").symlink_to("real.jsonl")
    run("forward(1)")
    run("forward(2)")

    assert (autotune.folder / "trace.jsonl").is_symlink()
    assert read_trace(autotune.folder / "real.jsonl").sizes() == [2]


def test_a_server_that_looks_nothing_up_is_told_of(run):
    ended = run("")

    assert ended.code == 0
    assert "nothing to tune: trace.jsonl holds no look-up: vLLM asked for none" in ended.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-o", "mine.txt", "--", "true"), "mine.txt is no trace, and would be lost"),
        (("-o", "no/t.jsonl", "--", "true"), "there is no folder no"),
        (("-o", ".", "--", "true"), "it is a folder"),
        (("--", "no-such-server", "--flag"), "cannot start no-such-server: there is no such"),
    ],
)
def test_what_cannot_be_run_or_written_is_said_in_one_line(autotune, flags, message):
    (autotune.folder / "mine.txt").write_text("years of work\n")

    assert message in autotune("trace", *flags).has_failed_in_one_line()
    assert [path.name for path in autotune.folder.iterdir()] == ["mine.txt"]
    assert (autotune.folder / "mine.txt").read_text() == "years of work\n"


@pytest.mark.slow
def test_a_trace_is_kept_where_the_command_cannot_be_started(run, autotune):
    run("forward(1)")
    autotune("trace", "--", "no-such-server").has_failed_in_one_line()

    assert read_trace(autotune.folder / "trace.jsonl").asked


def test_a_command_is_needed(autotune):
    assert "Missing argument" in autotune("trace", "-o", "t.jsonl").has_refused_its_usage()


# ------------------------------------------------------------------ --trace


@pytest.mark.slow
def test_what_was_looked_up_is_tuned_and_then_found(run, autotune):
    run("compile_or_warm_up_model((1, 16)); forward(17)")
    replayed = ("--trace", "trace.jsonl", "--replay", shipped_recording(), "--tokens", "1,16")
    autotune("run", *replayed, "--trials", 3)

    ended = autotune("check", "tuned", "--trace", "trace.jsonl")

    rows = [line.split() for line in ended.out.splitlines()[:4]]
    assert rows == [
        ["tokens", "asked", "exact", "nearest", "default", "stops", "when"],
        ["1", "16", "4", "0", "0", "0", "start"],
        ["16", "16", "4", "0", "0", "0", "start"],
        ["17", "16", "0", "4", "0", "0", "serving"],
    ]
    whole = json.loads(autotune("check", "tuned", "--trace", "trace.jsonl", "--json").out)
    assert whole["batches"][2] == {
        "tokens": 17,
        "when": "serving",
        "asked": 16,
        "exact": 0,
        "nearest": 4,
        "default": 0,
        "stops": 0,
    }
    assert len(whole["shapes"]) == 12


@pytest.mark.slow
def test_many_sizes_of_a_server_that_served_are_rows_by_powers_of_two(run, autotune):
    run("compile_or_warm_up_model((1, 300))\nfor size in range(200, 400): forward(size)")
    tuned = autotune.folder / "tuned"
    tuned.mkdir()
    (tuned / "NVIDIA_H100_80GB_HBM3_SHRINK.json").write_text(
        '{"9": {"1": {"1": {"1": {"1": {}}}}}}'
    )

    ended = autotune("check", "tuned", "--trace", "trace.jsonl")

    tokens = [" ".join(line.split()[:-6]) for line in ended.out.splitlines()[1:5]]
    assert tokens == ["1", "200 to 255 (56 sizes)", "256 to 399 (143 sizes)", "300"]


@pytest.mark.parametrize("flags", [("shapes",), ("check", "tuned"), ("configs",)])
def test_look_ups_that_are_left_out_are_said_beside_json(run, autotune, flags):
    run("forward(1)")
    trace = autotune.folder / "trace.jsonl"
    header, first, *others = trace.read_text().splitlines(keepends=True)
    unknown = first.replace('"op": "', '"op": "new_').replace('"number": 0', '"number": 999')
    trace.write_text(
        "".join(
            [header.replace('"gpu": ""', '"gpu": "NVIDIA H100 80GB HBM3"'), first, *others, unknown]
        )
    )
    tuned = autotune.folder / "tuned"
    tuned.mkdir()
    (tuned / "NVIDIA_H100_80GB_HBM3_SHRINK.json").write_text(
        '{"9": {"1": {"1": {"1": {"1": {}}}}}}'
    )

    ended = autotune(*flags, "--trace", "trace.jsonl", "--json")

    assert json.loads(ended.out)
    assert ended.err.count("left out, as autotune cannot launch it") == 1


def test_a_check_is_for_the_gpu_that_was_traced(run, autotune):
    run("forward(1)")
    trace = autotune.folder / "trace.jsonl"
    trace.write_text(trace.read_text().replace('"gpu": ""', '"gpu": "NVIDIA L4"'))
    tuned = autotune.folder / "tuned"
    tuned.mkdir()
    (tuned / "NVIDIA_H100_80GB_HBM3_SHRINK.json").write_text("{}")

    ended = autotune("check", "tuned", "--trace", "trace.jsonl", "--json")

    found = json.loads(ended.out)
    assert {each["gpu"] for each in found["shapes"]} == {"NVIDIA L4"}
    assert "other_gpu" in {each["kind"] for each in found["findings"]}


@pytest.mark.slow
def test_a_forward_pass_is_timed_by_how_many_layers_were_seen(run, autotune):
    run("compile_or_warm_up_model((1, 16))")
    replayed = ("--trace", "trace.jsonl", "--replay", shipped_recording())
    ended = autotune("run", *replayed, "--trials", 3)
    shapes = json.loads(autotune("shapes", "--trace", "trace.jsonl", "--json").out)

    assert "All LoRA kernels of one forward pass" in ended.out
    assert {shape["runs"] for shape in shapes} == {4}


@pytest.mark.parametrize(
    "flags",
    [
        *(("--max-loras", 8), ("--rank", 16), ("--model", "m"), ("--tp", 2), ("--adapter", "a")),
        *(("--fully-sharded",), ("--no-expert-parallel",), ("--max-num-seqs", 4), ("study.toml",)),
        *(("--target-modules", "q_proj"), ("--moe-shared-loras",), ("--moe-backend", "marlin")),
        ("--ask-vllm",),
    ],
)
def test_a_flag_that_a_trace_has_the_answer_to_is_refused(autotune, flags):
    line = autotune("shapes", "--trace", "t.jsonl", *flags).has_failed_in_one_line()

    named = "a study file" if flags == ("study.toml",) else flags[0].replace("--no-", "--")
    assert f"got {named}, too; leave one of them out" in line


@pytest.mark.parametrize("command", [("run",), ("shapes",), ("check", "tuned"), ("bench", "tuned")])
def test_a_trace_that_cannot_be_read_is_said_in_one_line(autotune, command):
    line = autotune(*command, "--trace", "none.jsonl").has_failed_in_one_line()

    assert "cannot read the trace none.jsonl: No such file or directory" in line
