"""The plugin in a server's processes: what it writes, and that it never touches the server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from autotune.plan.traced import read_trace
from autotune.trace import PLUGIN
from tests.patience import PATIENCE_S
from tests.trace import server
from tests.vllm.releases import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return server.package(tmp_path_factory.mktemp("server"))


@pytest.fixture
def trace(tmp_path) -> Path:
    path: Path = tmp_path / "trace.jsonl"
    return path


def said(script: str, environ: dict[str, str]) -> tuple[str, str]:
    """What a server wrote to its two outputs."""
    with server.start(script, environ) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out, err


def lines_of(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines()]


#: What a server answers, or raises, with and without the plugin.
ANSWERS = """
compile_or_warm_up_model()
print(utils.get_lora_op_configs("shrink", 9, 1, 4096, 16, 3))
for rank in (13, [1]):
    try:
        ops._lora_shrink(None, [Weight((8, 1, 16, 4096), 1)], 9, 5, rank=rank)
    except Exception as error:
        print(repr(error))
print(utils.get_lora_op_configs.cache_info().currsize)
utils.get_lora_op_configs.cache_clear()
print(utils.get_lora_op_configs.cache_info().currsize)
"""


def test_the_entry_point_is_declared_and_is_there():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    group = lines[lines.index('[project.entry-points."vllm.general_plugins"]') + 1 :]
    declared = re.match(rf'{PLUGIN} = "([\w.]+):(\w+)"', group[0])
    assert declared is not None
    module, function = declared.groups()

    assert callable(getattr(import_module(module), function))


def test_nothing_is_imported_or_hooked_where_the_variable_is_not_set(folder):
    script = """
before = set(sys.modules)
install()
print(sorted(name for name in sys.modules if name.startswith("autotune")))
print({"torch", "pydantic", "typer", "numpy"} & set(sys.modules))
print([each for each in sys.meta_path if "autotune" in type(each).__module__])
print(utils.get_lora_op_configs)
"""
    out, err = said(script, server.environment(folder, None))

    modules, heavy, hooks, look_up = out.splitlines()
    assert modules == str(
        ["autotune", "autotune.trace", "autotune.trace.plugin", "autotune.version"]
    )
    assert heavy == "set()"
    assert hooks == "[]"
    assert "lru_cache" in look_up
    assert err == ""


def test_answers_and_exceptions_are_the_same_with_the_plugin(folder, trace):
    on = said(ANSWERS, server.environment(folder, trace))
    off = said(ANSWERS, server.environment(folder, None))

    assert on[0] == off[0]
    assert "KeyError('shrink')" in off[0]


def test_every_distinct_look_up_is_written_with_its_tensors_and_its_count(folder, trace):
    said("compile_or_warm_up_model(); forward(7); forward(7)", server.environment(folder, trace))

    read = read_trace(trace)
    assert len(read.kinds) == 4
    assert Counter(each.shape.num_tokens for each in read.asked) == {1: 4, 2: 4, 64: 4, 7: 4}
    assert {each.shape.num_tokens: each.when for each in read.asked} == {
        **dict.fromkeys((1, 2, 64), "start"),
        7: "serving",
    }
    assert {each.shape.num_tokens: each.count for each in read.asked} == {1: 4, 2: 4, 64: 4, 7: 8}
    assert {each.layers for each in read.asked} == {4}
    slices = {each.shape.slice_sizes for each in read.asked}
    assert slices == {(), (4096,), (4096, 1024, 1024)}


def test_counts_stay_exact_once_callers_are_no_longer_read(folder, trace):
    script = "compile_or_warm_up_model()\nfor _ in range(1000): forward(7)\nforward(9)"
    said(script, server.environment(folder, trace))

    counts = {each.shape.num_tokens: each.count for each in read_trace(trace).asked}
    assert counts == {1: 4, 2: 4, 64: 4, 7: 4000, 9: 4}


def test_kernels_that_share_a_key_are_told_apart_however_often_they_are_asked(folder, trace):
    script = """
for _ in range(1000):
    for small in (512, 1024):
        b = [Weight((8, 1, size, 16), small) for size in (4096, small)]
        ops._lora_expand(None, b, 9, 3)
"""
    said(script, server.environment(folder, trace))

    counts = {each.shape.slice_sizes: each.count for each in read_trace(trace).asked}
    assert counts == {(4096, 512): 1000, (4096, 1024): 1000}


def test_a_server_that_is_killed_loses_no_look_up(folder, trace):
    script = "compile_or_warm_up_model(); print('up', flush=True); import time; time.sleep(1e6)"
    with server.start(script, server.environment(folder, trace)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_for(lambda: trace.exists() and len(lines_of(trace)) >= 13)
        process.kill()
    assert len(read_trace(trace).asked) == 12


def test_counts_are_written_while_the_server_runs(folder, trace):
    script = (
        "compile_or_warm_up_model()\nfor _ in range(500): forward(7)\nimport time; time.sleep(1e6)"
    )
    with server.start(script, server.environment(folder, trace)) as process:
        wait_for(lambda: trace.exists() and '"count": 2000,' in trace.read_text())
        process.kill()

    assert {each.count for each in read_trace(trace).asked} == {4, 2000}


def wait_for(is_so: Any) -> None:
    for _ in range(int(PATIENCE_S * 100)):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_write_one_file_and_lose_and_mix_no_line(folder, trace, method, tmp_path):
    """As vLLM's workers: started after the look-up was wrapped, and without atexit if forked."""
    (tmp_path / "work.py").write_text(
        server.command("")[2] + "\ndef work(worker):\n"
        "    for size in range(1, 200):\n        forward(size * 8 + worker)\n"
    )
    script = f"""
import multiprocessing, sys
sys.path.insert(0, {str(tmp_path)!r})
import work
forward(5)
context = multiprocessing.get_context({method!r})
workers = [context.Process(target=work.work, args=(number,)) for number in range(4)]
for each in workers: each.start()
for each in workers: each.join()
"""
    said(script, server.environment(folder, trace))

    lines = lines_of(trace)
    assert [n for n, line in enumerate(lines) if "schema" in line] == [0]
    asked = read_trace(trace).asked
    assert {each.shape.num_tokens for each in asked} == {5} | {
        size * 8 + worker for size in range(1, 200) for worker in range(4)
    }
    assert {each.count for each in asked} == {4}
    assert len({line.get("process") for line in lines[1:]}) == 5


@pytest.mark.parametrize("place", ["folder", "missing", "pipe"])
def test_a_place_that_cannot_be_written_is_said_once_and_the_server_goes_on(
    folder, place, tmp_path
):
    places = {"folder": tmp_path, "missing": tmp_path / "no" / "t", "pipe": tmp_path / "pipe"}
    os.mkfifo(places["pipe"])
    out, err = said(
        "forward(1); forward(2); print('fine')", server.environment(folder, places[place])
    )

    assert out == "fine\n"
    assert err.count("no further look-up is traced") == 1


def test_a_full_disk_ends_the_trace_at_a_whole_line_and_not_the_server(folder, trace):
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
for size in range(1, 400):
    forward(size)
print("fine")
"""
    out, err = said(script, server.environment(folder, trace))

    assert out == "fine\n"
    assert err.count("no further look-up is traced") == 1
    assert not trace.exists() or trace.read_text() == "" or read_trace(trace).asked


def test_the_tensors_of_a_caller_further_up_are_found(folder, trace):
    script = """
def _lora_expand(inputs, lora_b_weights):
    def dispatch():
        return (lambda: utils.get_lora_op_configs(
            op_type="expand", max_loras=9, batch=2, hidden_size=64, rank=16, num_slices=2,
            add_inputs=False,
        ))()
    return dispatch()

_lora_expand(None, [Weight((8, 1, size, 16), 1) for size in (64, 32)])
"""
    said(script, server.environment(folder, trace))

    (asked,) = read_trace(trace).asked
    assert asked.shape.slice_sizes == (64, 32)


def test_symbols_of_a_compiler_are_no_look_up(folder, trace):
    script = """
class Symbol:
    pass

print(len(str(utils.get_lora_op_configs("shrink", 9, Symbol(), 4096, 16, 1))) > 0)
forward(3)
"""
    out, err = said(script, server.environment(folder, trace))

    assert (out, err) == ("True\n", "")
    assert read_trace(trace).sizes() == [3]


#: Callers whose variables are not what they seem.
ODD = """
class Odd:
    def __getattr__(self, name): raise RuntimeError(name)
    def __int__(self): raise RuntimeError
    def __len__(self): raise RuntimeError
    def __iter__(self): raise RuntimeError
    def __bool__(self): raise RuntimeError

def call(op, **names):
    exec(
        "utils.get_lora_op_configs(op_type=op, max_loras=2, batch=3, hidden_size=4, rank=8, "
        "num_slices=1, moe_intermediate_size=None if op in ('shrink', 'expand') else 5)",
        {"utils": utils, "op": op}, names,
    )

for op in ("shrink", "expand", "fused_moe_lora_w13_shrink", "fused_moe_lora_w2_expand", "new"):
    for odd in (Odd(), None, 1, "x", [], [None], [Odd()], (Odd(), Odd()), {}):
        for name in ("lora_a_weights", "lora_b_weights", "lora_a_stacked", "lora_b_stacked",
                     "num_active_loras", "top_k", "expert_map", "layer", "self", "fully_sharded"):
            call(op, **{name: odd})
print("fine")
"""


def test_callers_that_hold_anything_harm_nothing(folder, trace):
    out, err = said(ODD, server.environment(folder, trace))

    assert out == "fine\n"
    assert err == ""
    ops = {line["op"] for line in lines_of(trace)[1:] if "op" in line}
    assert len(ops) == 5


#: Holds the lock of the file that it is given until its input ends.
_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print(1, flush=True)
sys.stdin.read()
"""


def test_a_lock_that_is_held_forever_stops_nobody(folder, trace):
    script = "forward(1); print('fine')"
    with subprocess.Popen(  # noqa: S603 - the script above
        [sys.executable, "-c", _HOLD, str(trace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        out, _ = said(script, server.environment(folder, trace))
        holder.send_signal(signal.SIGKILL)

    assert out == "fine\n"
    assert len(read_trace(trace).asked) == 4


def test_a_line_that_a_killed_process_began_is_no_part_of_the_next(folder, trace):
    environ = server.environment(folder, trace)
    said("forward(1)", environ)
    trace.write_bytes(trace.read_bytes() + b'{"process": "1-1", "numb')
    said("forward(2)", environ)

    assert trace.read_text().splitlines()[-1].endswith("}")
    assert sum(line.startswith('{"process": "1-1"') for line in trace.read_text().splitlines()) == 1
