"""A run as it is watched: at every width, in a file, quiet and verbose."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from autotune.choose.selection import SAME, Ratio, Selection
from autotune.cli.live import RunDisplay, Verbosity, drawn, shape_line
from autotune.cli.progress import RunProgress
from autotune.launch.op import LoraOp
from autotune.measure import DeviceState, Outcome, RunnerStatus
from autotune.search.events import Choosing, Closed, Event, GpuLost, Looked, Opened
from tests.cli.run_events import CONFIG, SHAPES, done, planned, tried
from tests.moe import moe_shape

DEFAULT = replace(CONFIG, block_k=128)
BUSY = RunnerStatus(
    compiling=3,
    waiting=5,
    device=DeviceState(
        sm_clock_mhz=1980, memory_clock_mhz=2619, temperature_c=54, throttle_reasons=("power cap",)
    ),
)
LONG_REASON = "OutOfResources: shared memory, 294912 needed and 232448 there; fewer stages do"


def selection(ratio: Ratio | None = None, **values: object) -> Selection:
    ratio = ratio or Ratio(value=2.0, low=1.98, high=2.02)
    chosen = Selection(
        shape=SHAPES[0],
        config=CONFIG,
        default=DEFAULT,
        samples_us={CONFIG: (6.0,), DEFAULT: (12.0,)},
        ratio=ratio,
        trials=20,
        outcomes={"ok": 20},
    )
    return replace(chosen, **values)  # type: ignore[arg-type]


def shown(*events: Event, width: int, status: RunnerStatus | None = None) -> list[str]:
    """The lines that are drawn on a terminal of that many columns."""
    progress = RunProgress()
    for event in (planned(), *events):
        progress.watch(event)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawn(progress, [("", status)]))
    return capture.get().splitlines()


SEARCHING = (
    Opened(shape=SHAPES[0], tried=0, most=20),
    tried(1),
    tried(2, outcome=Outcome.TOO_SLOW, reason="slower"),
    tried(3, outcome=Outcome.LAUNCH_FAILED, samples_us=(), reason=LONG_REASON),
)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_is_drawn_fits_into_the_terminal_with_a_line_for_everything(width):
    lines = shown(*SEARCHING, width=width, status=BUSY)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)


def test_what_is_drawn_says_what_is_done_and_how_the_last_trials_ended():
    head, shape, best, last, status = shown(*SEARCHING, width=200, status=BUSY)
    assert head.startswith(" 0 of 4 shapes")
    assert shape == f" trial 3 of up to 20: shrink {SHAPES[0].label}"
    assert best == " best so far 6.02 µs, default 12.04 µs: 2.00x"
    assert last == f" last trials: launch failed ({LONG_REASON}), too slow, ok 6.02 µs"
    assert status == (
        " compiling 3, 5 waiting; GPU at 1980 MHz, 54 °C, held down: power cap"  # one line
    )


def test_a_long_reason_is_cut_where_the_terminal_ends():
    *_, last = shown(*SEARCHING, width=80)
    assert last.startswith(" last trials: launch failed (OutOfResources")
    assert last.endswith("…")


def test_a_replay_has_no_line_on_a_compile_queue():
    assert len(shown(*SEARCHING, width=80)) == 4


def of_several(width: int, *events: Event) -> list[str]:
    """The lines that are drawn of a run on three GPUs, of which one compiles nothing."""
    progress = RunProgress()
    for event in (planned(), *events):
        progress.watch(event)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    seen = [("GPU 0", BUSY), ("GPU 1", replace(BUSY, device=None)), ("GPU 2", None)]
    with console.capture() as capture:
        console.print(drawn(progress, seen, {SHAPES[1]: "o, down"}))
    return capture.get().splitlines()


CLOCKS = ", at 1980 MHz, 54 °C, held down: power cap"
ON_TWO = (
    Opened(shape=SHAPES[0], tried=0, most=20, device="GPU 0"),
    Opened(shape=SHAPES[1], tried=2, most=20, device="GPU 1", best_us=6.0, default_us=12.0),
    Opened(shape=SHAPES[2], tried=0, most=20, device="GPU 0"),
    tried(1, SHAPES[0]),
)


def test_every_gpu_of_several_has_a_line_with_its_shape_its_best_its_clocks_and_its_heat():
    head, *lines = of_several(200, *ON_TWO)
    assert head.startswith(" 0 of 4 shapes")
    assert lines == [
        f" GPU 0: trial 1/20, best 6.02 µs (2.00x){CLOCKS}: shrink {SHAPES[0].label}",
        f" GPU 1: trial 2/20, best 6.00 µs (2.00x): shrink o, down: {SHAPES[1].label}",
        " GPU 2: nothing to do",
        " compiling 6, 10 waiting",
    ]


def test_a_lost_gpu_is_shown_as_lost():
    lines = of_several(200, *ON_TWO, Closed(shape=SHAPES[1]), GpuLost(device="GPU 1"))
    assert lines[2] == " GPU 1: lost"


@pytest.mark.parametrize("width", [40, 80])
def test_the_lines_of_several_gpus_are_cut_where_the_terminal_ends(width):
    lines = of_several(width, *ON_TWO)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)


def test_a_gpu_whose_shape_is_done_shows_the_other_one_that_it_has():
    events = (*ON_TWO, Choosing(shape=SHAPES[1], finalists=5), done(1, 20))
    assert of_several(200, *events)[1:3] == [
        f" GPU 0: trial 0/20, at 1980 MHz, 54 °C, held down: power cap: shrink {SHAPES[2].label}",
        f" GPU 1: 5 finalists, best 6.00 µs (2.00x): shrink o, down: {SHAPES[1].label}",
    ]


def test_a_name_that_is_too_long_leaves_the_numbers_before_it():
    moe = Opened(shape=moe_shape(LoraOp.W13_SHRINK), tried=0, most=300)
    _, shape, *_ = shown(moe, width=40)
    assert shape.startswith(" trial 0 of up to 300: ")
    assert shape.endswith("…")


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ((SEARCHING[0], done(1, 20)), "going on to the next shape"),
        (SEARCHING[:1], "best so far: nothing works yet"),
        ((*SEARCHING, Choosing(shape=SHAPES[0], finalists=7)), "timing 7 finalists side by side"),
        ((Looked(shape=SHAPES[0]),), "batch sizes between the tuned ones: 1 timed"),
    ],
)
def test_every_phase_says_what_it_is(events, text):
    assert any(text in line for line in shown(*events, width=100))


@pytest.mark.parametrize(
    ("chosen", "wide", "narrow"),
    [
        (selection(), "12.00 -> 6.00 µs, 2.00x [1.98, 2.02], 20 trials", "  2.00x    12.00 ->"),
        (
            selection(SAME, config=DEFAULT),
            "12.00 -> 12.00 µs, 1.00x (default), 20 trials",
            "default    12.00 ->   12.00 µs",
        ),
        (None, "nothing works among 20 trials", "nothing works among 20 trials: shrink"),
    ],
)
def test_a_shape_is_a_line_with_its_figures_first_where_there_is_little_room(chosen, wide, narrow):
    event = done(1, 20, chosen)
    assert shape_line(event) == f"[1/4] shrink {SHAPES[0].label}: {wide}"
    assert narrow in shape_line(event, wide=False)[:50]


def said(verbosity: Verbosity, *, width: int = 160, is_terminal: bool = False) -> str:
    """What a run of one shape prints."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None)
    with RunDisplay(console, RunProgress(), status=tuple, verbosity=verbosity) as display:
        for event in (planned(), *SEARCHING, done(1, 3, selection())):
            display.watch(event)
    return file.getvalue()


def test_the_display_starts_with_what_it_is_doing():
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawn(RunProgress()))
    head, doing = capture.get().splitlines()
    assert head.startswith(" starting")
    assert "listing every shape's configurations" in doing


def test_lines_of_a_shape_name_its_layer():
    layers = {SHAPES[0]: "o, down"}
    event = done(1, 20, selection())
    assert shape_line(event, layers).startswith(f"[1/4] shrink o, down: {SHAPES[0].label}: ")
    assert "shrink o, down: " in shape_line(event, layers, wide=False)
    progress = RunProgress()
    for each in (planned(), *SEARCHING):
        progress.watch(each)
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawn(progress, (), layers))
    assert "trial 3 of up to 20: shrink o, down: m=1" in capture.get()


def test_latencies_of_a_verbose_run_have_a_unit():
    assert "ok 6.02 µs" in said(Verbosity.VERBOSE)


def test_a_file_gets_a_line_a_shape_and_nothing_else():
    assert said(Verbosity.NORMAL) == shape_line(done(1, 3, selection())) + "\n"


def test_a_verbose_run_has_a_line_a_trial_with_its_configuration():
    *trials, shape = said(Verbosity.VERBOSE).splitlines()
    assert [line.split()[0] for line in trials] == ["1", "2", "3"]
    assert all("block_m=16 block_n=16 block_k=64" in line for line in trials)
    assert shape.startswith("[1/4]")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_quiet_run_says_nothing(is_terminal):
    assert said(Verbosity.QUIET, is_terminal=is_terminal) == ""


def test_on_a_terminal_what_is_drawn_is_erased_at_the_end_and_the_lines_stay():
    text = said(Verbosity.VERBOSE, width=80, is_terminal=True)
    lines, _, drawn_last = text.partition("[1/4]")
    assert "  3  launch failed (OutOfResources" in lines
    assert drawn_last.endswith("\x1b[2K")


def test_flags_choose_how_much_is_said():
    assert Verbosity.of(quiet=True, verbose=False) is Verbosity.QUIET
    assert Verbosity.of(quiet=False, verbose=True) is Verbosity.VERBOSE
    assert Verbosity.of(quiet=False, verbose=False) is Verbosity.NORMAL
