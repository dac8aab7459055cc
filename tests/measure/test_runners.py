"""Which runner a run on a GPU gets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autotune.errors import GpuMissing, InputError, KernelsUnusable
from autotune.launch.environment import Environment
from autotune.measure import runners
from autotune.measure.cuda import choice
from autotune.measure.cuda.runner import CudaRunner, Processes
from autotune.measure.cuda.visible import VisibleDevice
from autotune.measure.runners import (
    begin_gpu,
    begin_gpus,
    gpu_runner,
    gpu_runners,
    replay_runner,
    replay_workers,
    stand_in,
)
from tests.patience import PATIENCE_S
from tests.recordings import ENVIRONMENT


class FakeProcesses(Processes):
    """Starts nothing, and makes one ``FakeRunner``."""

    def __init__(
        self,
        provider: str,
        devices: Sequence[VisibleDevice | None] = (None,),
        *,
        compile_workers: int | None = None,
    ) -> None:
        self.provider, self.devices, self.closed = provider, tuple(devices), False
        self.compile_workers = compile_workers

    def runners(self) -> list[CudaRunner]:
        return [FakeRunner(self.provider) for _ in self.devices]  # type: ignore[misc]

    def close(self) -> None:
        self.closed = True


#: What ``FakeProcesses`` does where nothing else is said.
_made = FakeProcesses.runners


class FakeRunner:
    """Can be made only for the providers in ``there``."""

    there: tuple[str, ...] = ("builtin", "vllm")

    def __init__(self, provider: str) -> None:
        if provider not in self.there:
            raise KernelsUnusable(f"cannot drive {provider}")
        version = {"vllm": "0.33.0", "builtin": "1"}[provider]
        self.environment = replace(
            Environment.from_mapping(ENVIRONMENT), provider=provider, provider_version=version
        )


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines said, on a machine that seems to have a GPU and an installed vLLM."""
    monkeypatch.setattr(runners, "has_gpu", lambda: True)
    monkeypatch.setattr(runners, "Processes", FakeProcesses)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=name))
    return []


def test_vllms_kernels_are_taken_if_they_can_be_used(said):
    assert gpu_runner("auto", said.append).environment.provider == "vllm"
    assert said == ["The kernels are those of vLLM 0.33.0."]


def test_without_vllm_our_own_kernels_are_taken_and_a_line_says_so(said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    assert gpu_runner("auto", said.append).environment.provider == "builtin"
    assert said == ["The kernels are autotune's own: vLLM is not installed here."]


def test_a_folder_called_vllm_does_not_count_as_vllm(said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: SimpleNamespace(origin=None))

    assert gpu_runner("auto", said.append).environment.provider == "builtin"


def test_if_vllm_cannot_be_driven_a_line_gives_the_reason(said, monkeypatch):
    monkeypatch.setattr(FakeRunner, "there", ("builtin",))

    assert gpu_runner("auto", said.append).environment.provider == "builtin"
    assert said == ["The kernels are autotune's own: cannot drive vllm."]


@pytest.mark.parametrize("there", [("builtin", "vllm"), ("builtin",)])
def test_one_gpu_of_a_host_gets_its_share_of_the_compilers(said, monkeypatch, there):
    monkeypatch.setattr(FakeRunner, "there", there)
    made: list[FakeProcesses] = []

    def noted(processes: FakeProcesses) -> list[CudaRunner]:
        made.append(processes)
        return _made(processes)

    monkeypatch.setattr(FakeProcesses, "runners", noted)
    device = VisibleDevice(3, "NVIDIA Test-GPU", "GPU-1", "3")

    gpu_runners("auto", said.append, begin_gpu("auto", device, compile_workers=5))
    assert (made[-1].provider, made[-1].devices) == (there[-1], (device,))
    assert {each.compile_workers for each in made} == {5}


def test_kernels_that_were_asked_for_are_never_replaced(said, monkeypatch):
    monkeypatch.setattr(FakeRunner, "there", ("builtin",))

    with pytest.raises(KernelsUnusable, match="cannot drive vllm"):
        gpu_runner("vllm", said.append)
    assert gpu_runner("builtin", said.append).environment.provider == "builtin"
    assert said == []


def test_what_was_begun_for_the_kernels_asked_for_is_used(said):
    begun = begin_gpus("auto")
    assert begun is not None
    assert isinstance(begun.processes, FakeProcesses)

    assert begun.processes.provider == "vllm"
    assert gpu_runners("vllm", said.append, begun)[0].environment.provider == "vllm"
    assert not begun.processes.closed


def test_what_was_begun_for_other_kernels_is_closed(said):
    begun = begin_gpus("auto")
    assert begun is not None
    assert isinstance(begun.processes, FakeProcesses)

    assert gpu_runners("builtin", said.append, begun)[0].environment.provider == "builtin"
    assert begun.processes.closed
    assert said == []


def test_what_was_begun_for_other_gpus_is_closed(said, monkeypatch):
    two = [VisibleDevice(n, "NVIDIA Test-GPU", f"GPU-{n}", str(n)) for n in range(2)]
    monkeypatch.setattr(choice, "visible_devices", lambda: two)
    begun = begin_gpus("auto")
    assert begun is not None
    assert isinstance(begun.processes, FakeProcesses)
    assert begun.processes.devices == (None,)

    assert len(gpu_runners("auto", said.append, begun, gpus=2)) == 2
    assert begun.processes.closed


def test_replays_work_side_by_side_in_any_number_that_makes_sense():
    runner = replay_runner(())
    assert replay_workers(runner, None) == replay_workers(runner, 1) == [runner]
    several = replay_workers(runner, 3)
    assert [each.device for each in several] == ["replay 0", "replay 1", "replay 2"]
    assert [each.shapes for each in several] == [runner.shapes] * 3
    for asked in ("all", (0, 1), 65):
        with pytest.raises(InputError, match=r"^--gpus (all|0,1|65) is for GPUs, and a recording"):
            replay_workers(runner, asked)


def test_gpus_that_are_asked_for_are_not_replaced_by_the_shipped_recording():
    with pytest.raises(GpuMissing, match="no CUDA GPU here: got --gpus 2; run this where"):
        stand_in("auto", 2)


def test_without_a_gpu_nothing_is_started(said, monkeypatch):
    monkeypatch.setattr(runners, "has_gpu", lambda: False)

    assert begin_gpus("auto") is None
    with pytest.raises(GpuMissing, match="no CUDA GPU here"):
        gpu_runner("auto", said.append)


def test_choosing_a_runner_imports_neither_torch_nor_triton():
    script = (
        "import sys, autotune.measure.runners, autotune.measure.sweep\n"
        "print({'torch', 'triton'} & set(sys.modules))"
    )
    run = subprocess.run(  # noqa: S603 - the script above
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )

    assert run.stdout.strip() == "set()"
