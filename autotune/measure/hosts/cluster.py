"""Joining a Ray cluster: a Runner for each of its GPUs that is free."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from autotune.errors import AutotuneError, InputError, printable
from autotune.measure.cuda.choice import Asked, number_asked
from autotune.measure.hosts.actor import Joined, Measurer
from autotune.measure.hosts.remote import BESIDE, RemoteRunner, first_line
from autotune.measure.replay import ReplayRunner
from autotune.version import __version__

#: Seconds for each: until the head answers, until a client is let in, until all GPUs have joined.
_ANSWER_S = 5.0
_CONNECT_S = 30.0
_JOIN_S = 300.0

#: Seconds that GPUs which are in use are waited for: a run that has just ended gives them back.
_FREE_S = 5.0

#: Seconds that actors have to end their processes.
_PART_S = 10.0

#: What a process does to find out whether a cluster is there: Ray itself tries for minutes.
_TRY = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level=50)"


@contextlib.contextmanager
def joined_runners(
    address: str,
    kernels: str,
    say: Callable[[str], None],
    *,
    gpus: Asked = None,
    recorded: ReplayRunner | None = None,
) -> Iterator[list[RemoteRunner]]:
    """What ``ray_runners`` returns."""
    if isinstance(gpus, tuple):
        raise InputError(
            f"--ray chooses the GPUs itself: got --gpus {number_asked(gpus)}; say how many"
        )
    with _connected(address), contextlib.ExitStack() as opened:
        actors = [_actor() for _ in range(_number(gpus, say))]
        opened.callback(_end, actors)
        yield _joined(actors, kernels, recorded, say)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Be a client of the cluster."""
    found = _find(address)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(found, log_to_driver=False, logging_level=logging.CRITICAL)
    except (RayError, RuntimeError, ConnectionError, ValueError, OSError) as error:
        raise InputError(f"--ray {address}: {_in_one_line(str(error))}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _find(address: str) -> str:
    """The address of a cluster that answers.

    Raises:
        InputError: None answers within half a minute.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
        except (OSError, UnicodeError) as error:  # the latter: no name of a host
            raise InputError(
                f"--ray {address}: nothing answers there ({error}); start Ray on that host with: "
                "ray start --head"
            ) from None
    try:
        tried = subprocess.run(  # noqa: S603 - our own line
            [sys.executable, "-c", _TRY, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONNECT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"--ray {address}: no Ray cluster answers within {_CONNECT_S:.0f} s; see whether it "
            "is up with: ray status"
        ) from None
    if tried.returncode:
        lines = [line for line in tried.stderr.splitlines() if line and not line[0].isspace()]
        said = lines[-1].partition(": ")[2] or lines[-1] if lines else "Ray has ended"
        if "Could not find any running Ray" in said:
            said = "no Ray runs here; start it with: ray start --head, or give its HOST:PORT"
        raise InputError(f"--ray {address}: {printable(said)}")
    return address


def _in_one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _number(asked: int | str | None, say: Callable[[str], None]) -> int:
    """How many GPUs to use.

    Raises:
        InputError: There are too few, or too few are free.
    """
    there = int(ray.cluster_resources().get("GPU", 0))
    wanted = asked if isinstance(asked, int) else there
    if not there:
        raise InputError(
            "--ray: the cluster has no GPU; start Ray on a host that has one, or name made-up "
            "ones for a replay: ray start --num-gpus N"
        )
    if wanted > there:
        raise InputError(f"--gpus {asked}: Ray's cluster has {there}; ask for fewer")
    late = time.monotonic() + _FREE_S
    while (free := int(ray.available_resources().get("GPU", 0))) < wanted:
        if time.monotonic() > late:
            break
        time.sleep(0.2)
    if not free or (isinstance(asked, int) and free < asked):
        raise InputError(
            f"--ray: {free or 'none'} of the cluster's {there} GPUs "
            f"{'is' if free < 2 else 'are'} free; wait, or see who has them with: ray status"
        )
    if free < wanted:
        say(f"Others use {there - free} of the {there} GPUs of Ray's cluster: they are left out.")
    return min(free, wanted)


def _actor() -> Any:  # noqa: ANN401 - Ray makes the type
    """Have Ray start an actor on a GPU. It takes no core: Ray counts those for other work."""
    made = ray.remote(num_gpus=1, num_cpus=0, concurrency_groups={BESIDE: 1})(Measurer)
    return made.remote()


def _joined(
    actors: Sequence[Any],
    kernels: str,
    recorded: ReplayRunner | None,
    say: Callable[[str], None],
) -> list[RemoteRunner]:
    """Wait for all actors, and make sure that they are alike."""
    late = time.monotonic() + _JOIN_S
    about: list[tuple[str, str]] = _answers([each.about.remote() for each in actors], late)
    for host, version in about:
        if version != __version__:
            raise InputError(
                f"--ray: host {host} has autotune {version}, and this one {__version__}: install "
                "the same on all hosts"
            )
    sent = ray.put(recorded)
    joining = [each.join.remote(kernels, sent, number) for number, each in enumerate(actors)]
    joined: list[Joined] = _answers(joining, late)
    first = joined[0]
    for other in joined[1:]:
        difference = first.environment.difference(other.environment)
        if difference:
            raise InputError(
                f"--ray: {first.device} and {other.device} differ ({difference}), and so would "
                "their figures: install the same on all hosts, and give each kind of GPU a "
                "cluster of its own"
            )
    for line in dict.fromkeys(line for each in joined for line in each.lines):
        say(line)
    hosts = len({host for host, _ in about})
    say(f"Ray has {len(actors)} GPU{'s'[: len(actors) > 1]} on {hosts} host{'s'[: hosts > 1]}.")
    return [RemoteRunner(*each) for each in zip(actors, joined, strict=True)]


def _answers(asked: Sequence[Any], late: float) -> list[Any]:
    """What all actors answer.

    Raises:
        AutotuneError: One cannot start, or does not answer in time.
    """
    try:
        return list(ray.get(list(asked), timeout=max(0.0, late - time.monotonic())))
    except GetTimeoutError:
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        raise AutotuneError(
            f"--ray: {len(asked) - len(done)} of {len(asked)} GPUs have not joined within "
            f"{_JOIN_S:.0f} s; see what the cluster waits for with: ray status"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, AutotuneError):
            raise error.cause from None
        raise AutotuneError(f"--ray: {_in_one_line(repr(error.cause))}") from None
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        hint = (
            f"autotune {__version__} must be installed on every host ({_in_one_line(last)})"
            if "ModuleNotFoundError" in str(error) or "AttributeError" in str(error)
            else f"see Ray's logs there ({_in_one_line(last)})"
        )
        raise AutotuneError(f"--ray: an actor cannot start, {first_line(error)}: {hint}") from None


def _end(actors: Sequence[Any]) -> None:
    """End the actors, and the processes of their runners."""
    with contextlib.suppress(RayError, RuntimeError):
        asked = [each.close.options(concurrency_group=BESIDE).remote() for each in actors]
        ray.wait(asked, num_returns=len(asked), timeout=_PART_S)
    for each in actors:
        with contextlib.suppress(RayError, RuntimeError, ValueError):
            ray.kill(each)
