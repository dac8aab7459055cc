"""Which GPUs a run gets, on machines that are made up."""

from __future__ import annotations

import pytest

from autotune.errors import InputError
from autotune.measure.cuda import choice, visible
from autotune.measure.cuda.choice import chosen_devices
from autotune.measure.cuda.visible import Unknown, VisibleDevice, seen_text

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


class Machine:
    """GPUs of these names, some of which others use."""

    def __init__(self, *names: str) -> None:
        self.devices = [
            VisibleDevice(n, name, f"GPU-{n}{n}3c1a2b-0", str(n)) for n, name in enumerate(names)
        ]
        self.uses: dict[int, str] = {}
        self.is_known = True
        self.said: list[str] = []

    def use(self, device: VisibleDevice) -> str:
        if not self.is_known:
            raise Unknown("NVML Shared Library Not Found")
        return self.uses.get(device.number, "")

    def chosen(self, asked: choice.Asked) -> list[int | None]:
        those = chosen_devices(asked, self.said.append)
        return [None if each is None else each.number for each in those]


@pytest.fixture
def machine(monkeypatch):
    def made(*names: str) -> Machine:
        there = Machine(*names)
        for module in (choice, visible):
            monkeypatch.setattr(module, "visible_devices", lambda: there.devices)
        monkeypatch.setattr(choice, "use_by_others", there.use)
        return there

    return made


def test_without_a_word_it_is_the_first_gpu_as_a_process_finds_it(machine):
    there = machine(H100, H100)
    assert there.chosen(None) == [None]
    assert there.said == []


@pytest.mark.parametrize(
    ("asked", "chosen"), [(1, [0]), (2, [0, 1]), ("all", [0, 1, 2]), ((2,), [2]), ((2, 0), [2, 0])]
)
def test_so_many_all_or_those_that_are_named_are_used(machine, asked, chosen):
    there = machine(H100, H100, H100)
    assert there.chosen(asked) == chosen
    assert there.said == []


def test_a_gpu_that_others_use_is_said_and_left_out_unless_it_is_named(machine):
    there = machine(H100, H100, H100)
    there.uses = {0: "41.2 GiB of memory in use, 98 % busy"}
    line = (
        "GPU 0 (003c1a2b) is busy with something else (41.2 GiB of memory in use, 98 % busy): it "
        "is not used. --gpus 0, uses it all the same."
    )
    for asked, chosen in ((None, [1]), (1, [1]), (2, [1, 2]), ("all", [1, 2])):
        there.said.clear()
        assert there.chosen(asked) == chosen
        assert there.said == [line]
    there.said.clear()
    assert there.chosen((0, 1)) == [0, 1]
    assert there.said == [line.split("it is", maxsplit=1)[0] + "its figures may be off."]


def test_where_all_are_busy_nothing_is_asked_for_and_the_first_is_used(machine):
    there = machine(H100)
    there.uses = {0: "98 % busy"}
    assert there.chosen(None) == [None]
    assert there.said == [
        "GPU 0 (003c1a2b) is busy with something else (98 % busy): figures may be off."
    ]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (2, "--gpus 2: 1 of 2 GPUs is free, others use GPU 1 (113c1a2b): 98 % busy; wait, ask"),
        ((7,), "--gpus 7,: there is no GPU 7; the GPUs here are 0 (NVIDIA H100 80GB HBM3), 1 ("),
        (7, "--gpus 7: the GPUs here are 0 (NVIDIA H100 80GB HBM3), 1 (NVIDIA H100 80GB HBM3);"),
    ],
)
def test_what_cannot_be_had_is_one_line_that_says_what_there_is(machine, asked, line):
    there = machine(H100, H100)
    there.uses = {1: "98 % busy"}
    with pytest.raises(InputError) as caught:
        there.chosen(asked)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_all_of_a_machine_that_others_use_is_refused_with_their_names(machine):
    there = machine(H100, H100)
    there.uses = {0: "98 % busy", 1: "3.0 GiB of memory in use"}
    with pytest.raises(
        InputError, match=r"none of 2 GPUs is free.*to use all the same: --gpus 0,1"
    ):
        there.chosen("all")


@pytest.mark.parametrize("asked", [2, "all", (0, 1)])
def test_gpus_of_different_names_are_refused(machine, asked):
    there = machine(H100, A100)
    with pytest.raises(
        InputError, match=rf"GPU 0 is {H100} and GPU 1 is {A100}, and each kind has"
    ):
        there.chosen(asked)
    assert there.chosen((1,)) == [1]


def test_where_nvml_does_not_say_who_uses_the_gpus_a_line_says_so(machine):
    there = machine(H100, H100)
    there.is_known = False
    assert there.chosen(2) == [0, 1]
    (line,) = there.said
    assert line.startswith(
        "Whether others use the GPUs here is not known: NVML does not say (NVML "
    )


def test_without_a_gpu_that_the_driver_shows_only_the_current_one_may_be_used(machine):
    there = machine()
    assert there.chosen(None) == [None]
    with pytest.raises(InputError, match="NVIDIA's driver shows no GPU here"):
        there.chosen(2)


def test_what_there_is_is_said_in_words(machine):
    machine()
    assert seen_text() == "no CUDA GPU is here"
    machine(H100)
    assert seen_text() == f"the only GPU here is 0 ({H100})"
