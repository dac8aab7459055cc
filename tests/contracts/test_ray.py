"""Runs on a Ray cluster, whose GPUs are made up."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from autotune.errors import AutotuneError, DeviceLost, InputError
from autotune.launch.shape import KernelShape
from autotune.measure import never_stop
from autotune.measure.hosts import ray_runners
from autotune.measure.replay import ReplayRunner, shipped_recording
from autotune.store import Store
from autotune.testing import RunnerSuite
from tests.absent import without
from tests.cli.command import Command
from tests.clusters import Cluster, made_up_cluster
from tests.patience import PATIENCE_S
from tests.profiles import some
from tests.recordings import EXPAND, SHRINK, write_recording
from tests.together import problems_in

SHAPE = KernelShape.from_mapping(SHRINK)
AXES = {
    "block_m": (16, 32),
    "block_n": (16,),
    "block_k": (32, 64, 128),
    "split_k": (8,),
    "num_warps": (4,),
    "num_stages": (2, 3),
}

needs_ray = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray leaves sockets and files to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def marked(test):
    for mark in needs_ray:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One host with three GPUs."""
    with made_up_cluster(gpus=3) as made:
        yield made


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> Path:
    """Six shapes of 162 configurations each."""
    shapes = [kind | {"num_tokens": 8 << n} for kind in (SHRINK, EXPAND) for n in range(3)]
    return write_recording(tmp_path_factory.mktemp("recording") / "r.jsonl.gz", *shapes)


@pytest.fixture
def autotune(tmp_path) -> Command:
    """The command, in an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return Command(folder)


def kept(autotune: Command) -> Counter[str]:
    """How many configurations each device has measured; none where there is no database yet."""
    if not (autotune.folder / "autotune.db").exists():
        return Counter()
    with closing(Store(f"sqlite:///{autotune.folder / 'autotune.db'}")) as store:
        query = "SELECT device FROM autotune_measurements"
        with store.engine.connect() as connection:
            return Counter(connection.exec_driver_sql(query).scalars())


def killed_in_the_middle(autotune: Command, kill: threading.Thread, command: tuple[object, ...]):
    kill.start()
    ended = autotune(*command)
    kill.join()
    return ended


def after_some(autotune: Command, then, *, gpus: int = 3) -> threading.Thread:
    """A thread that does something once every GPU has measured a little."""

    def wait_and_do() -> None:
        late = time.monotonic() + PATIENCE_S
        while time.monotonic() < late:
            try:
                counts = kept(autotune)
            except Exception:  # noqa: BLE001 - its tables are being made
                counts = Counter()
            if len(counts) == gpus:
                then()
                return
            time.sleep(0.02)

    return threading.Thread(target=wait_and_do, daemon=True)


def kill_one(cluster: Cluster) -> None:
    cluster.measurers()[0].kill()


# ------------------------------------------------------------------ what holds of a whole run


@marked
def test_a_run_on_a_cluster_is_whole_and_quiet_and_leaves_no_process(autotune, cluster, six):
    ended = autotune("run", "--replay", six, "--ray", cluster.address, "--trials", 12)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert ended.out.startswith("Ray has 3 GPUs on 1 host.\n[")
    assert "6 exact, 0 nearest, 0 default, 0 stops; 0 errors" in ended.out
    host = socket.gethostname()
    assert set(kept(autotune)) == {f"replay {n} of {host}" for n in range(3)}
    assert kept(autotune).total() == 6 * 12
    assert problems_in(f"sqlite:///{autotune.folder / 'autotune.db'}") == []
    cluster.lets_go()


@marked
def test_one_gpu_of_a_cluster_is_as_good_as_none_to_the_byte(autotune, cluster, six):
    flags = ("--trials", 10, "--seed", 7)
    for name, ray in (("a", ()), ("b", ("--ray", cluster.address, "--gpus", 1))):
        ended = autotune(
            *("run", "--replay", six, *flags, *ray, "--output", name),
            *("--storage", f"sqlite:///{name}.db"),
        )
        assert ended.code == 0, ended.err
    assert autotune.files("a") == autotune.files("b")


@marked
def test_a_run_ends_whole_though_an_actor_is_killed_in_the_middle(autotune, cluster, six):
    kill = after_some(autotune, lambda: kill_one(cluster))
    command = ("run", "--replay", six, "--ray", cluster.address, "--trials", 30)
    ended = killed_in_the_middle(autotune, kill, command)
    assert ended.code == 0, ended.err
    lost = re.findall(
        r"replay \d of .* is lost: .*: the other 2 GPUs go on\.", ended.out + ended.err
    )
    assert len(lost) == 1
    assert kept(autotune).total() == 6 * 30
    assert problems_in(f"sqlite:///{autotune.folder / 'autotune.db'}") == []
    assert autotune("check", "tuned", "--replay", six).code == 0


@marked
def test_a_run_ends_whole_though_a_host_is_killed_in_the_middle(autotune, cluster, six):
    node = cluster.start("--address", cluster.address, gpus=2)
    kill = after_some(autotune, lambda: cluster.end(node, signal.SIGKILL), gpus=5)
    flags = ("--gpus", 5, "--trials", 30)
    ended = killed_in_the_middle(
        autotune, kill, ("run", "--replay", six, "--ray", cluster.address, *flags)
    )
    assert ended.code == 0, ended.err
    assert len(re.findall(r"replay \d of .* is lost: ", ended.out + ended.err)) == 2
    assert kept(autotune).total() == 6 * 30
    assert problems_in(f"sqlite:///{autotune.folder / 'autotune.db'}") == []


@marked
def test_a_run_that_has_lost_all_actors_ends_with_a_line_and_the_next_goes_on(
    autotune, cluster, six
):
    def kill() -> None:
        for each in cluster.measurers():
            each.kill()

    command = ("run", "--replay", six, "--ray", cluster.address, "--trials", 30)
    ended = killed_in_the_middle(autotune, after_some(autotune, kill), command)
    assert ended.code == 1, ended.out
    assert "is lost: " in ended.err.splitlines()[-1]
    before = kept(autotune)
    assert before.total() > 0
    ended = autotune(*command)
    assert ended.code == 0, ended.err
    assert kept(autotune).total() == 6 * 30
    assert problems_in(f"sqlite:///{autotune.folder / 'autotune.db'}") == []


@marked
@pytest.mark.parametrize(("number", "code"), some([(signal.SIGTERM, 143)], [(signal.SIGINT, 130)]))
def test_a_signal_ends_the_run_and_its_actors(autotune, cluster, number, code):
    process = autotune.start(
        *("run", "--replay", shipped_recording(), "--ray", cluster.address, "--trials", 20),
        *("--op", "expand", "--tokens", "16,128"),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("["):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert err.startswith("autotune: interrupted; ")
    cluster.lets_go()


# ------------------------------------------------------------------ what a RemoteRunner promises


@marked
class TestRemoteReplay(RunnerSuite):
    """A replay that answers from afar passes the suite that is shipped."""

    @pytest.fixture(scope="class")
    @classmethod
    def joined(cls, cluster, tmp_path_factory):
        recorded = ReplayRunner([write_recording(tmp_path_factory.mktemp("r") / "r.jsonl.gz")])
        with ray_runners(
            cluster.address, "auto", lambda _line: None, gpus=1, recorded=recorded
        ) as (one,):
            yield one

    @pytest.fixture
    def runner(self, joined):
        return joined

    def space(self, runner):
        return runner.space(SHAPE, AXES)

    def test_it_has_nothing_to_tell_of_itself(self, runner):
        assert runner.status is None
        assert runner.replayed is not None
        assert SHAPE in runner.answered

    def test_a_gpu_that_another_run_has_is_not_taken(self, runner, autotune, cluster, six):
        command = ("run", "--replay", six, "--ray", cluster.address, "--trials", 2)
        ended = autotune.in_a_process(*command, "--gpus", 3)
        assert "2 of the cluster's 3 GPUs are free; wait" in ended.has_failed_in_one_line()
        ended = autotune.in_a_process(*command)
        assert ended.code == 0, ended.err
        assert "Others use 1 of the 3 GPUs of Ray's cluster: they are left out." in ended.out
        assert "Ray has 2 GPUs on 1 host." in ended.out


@marked
class TestRemoteCompilers(RunnerSuite):
    """The real compilers and a fake device, in an actor."""

    @pytest.fixture(scope="class")
    @classmethod
    def joined(cls, cluster):
        from autotune.measure.hosts import cluster as joining
        from tests.measure.cuda.actors import actor_with_a_fake_device

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(joining, "_actor", actor_with_a_fake_device)
            with ray_runners(cluster.address, "auto", lambda _line: None, gpus=1) as (one,):
                yield one

    @pytest.fixture
    def runner(self, joined):
        joined.leave(SHAPE)  # as if nothing was measured
        return joined

    def space(self, runner):
        return runner.space(SHAPE, AXES)

    def test_its_status_comes_while_it_works(self, runner):
        late = time.monotonic() + PATIENCE_S
        while runner.status is None:
            assert time.monotonic() < late
            time.sleep(0.01)
        assert runner.status.compilers == 2

    def test_it_is_lost_once_its_actor_is_killed(self, runner, cluster):
        for each in cluster.measurers():
            each.kill()
        with pytest.raises(DeviceLost, match="is lost: "):
            runner.measure(SHAPE, runner.space(SHAPE, AXES).configs, never_stop)


# ------------------------------------------------------------------ what is refused


@marked
def test_hosts_that_differ_are_refused_by_name(cluster, six, monkeypatch):
    from autotune.measure.hosts import cluster as joining
    from tests.measure.cuda.actors import actor_of_its_own_triton

    recorded = ReplayRunner([six])
    monkeypatch.setattr(joining, "_actor", actor_of_its_own_triton)
    joined = ray_runners(cluster.address, "auto", print, gpus=2, recorded=recorded)
    with pytest.raises(InputError, match=r"replay 0 of .* and replay 1 of .* differ \(triton "):
        joined.__enter__()
    monkeypatch.undo()
    monkeypatch.setattr(joining, "__version__", "0.0.1")
    joined = ray_runners(cluster.address, "auto", print, gpus=2, recorded=recorded)
    with pytest.raises(InputError, match=r"host .* has autotune .*, and this one 0\.0\.1: install"):
        joined.__enter__()
    cluster.lets_go()


@marked
def test_a_host_without_autotune_is_told_of(cluster, six, monkeypatch, tmp_path):
    from autotune.measure.hosts import cluster as joining
    from tests.measure.cuda.actors import actor_of

    source = "from autotune.measure.hosts.actor import Measurer\nclass Mine(Measurer):\n    pass\n"
    (tmp_path / "of_here_only.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import of_here_only  # type: ignore[import-not-found]

    monkeypatch.setattr(joining, "_actor", lambda: actor_of(of_here_only.Mine))
    joined = ray_runners(cluster.address, "auto", print, recorded=ReplayRunner([six]))
    with pytest.raises(AutotuneError, match="must be installed on every host") as raised:
        joined.__enter__()
    assert "\n" not in str(raised.value)


@marked
def test_what_a_cluster_cannot_give_is_refused_in_a_line(autotune, cluster, six):
    def said(*flags: object) -> str:
        line: str = autotune("run", "--replay", six, *flags).has_failed_in_one_line()
        return line

    there = ("--ray", cluster.address)
    assert "--gpus 4: Ray's cluster has 3; ask for fewer" in said(*there, "--gpus", 4)
    assert "chooses the GPUs itself: got --gpus 0,2" in said(*there, "--gpus", "0,2")
    ended = autotune("run", *there, "--op", "expand", "--gpus", 1)
    assert "but CUDA finds none" in ended.has_failed_in_one_line()
    assert not (autotune.folder / "autotune.db").exists()


@marked
def test_an_address_where_no_ray_answers_is_refused_in_a_line(autotune, six, monkeypatch):
    from autotune.measure.hosts import cluster as joining

    monkeypatch.setattr(joining, "_CONNECT_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        there = f"127.0.0.1:{other.getsockname()[1]}"
        ended = autotune("run", "--replay", six, "--ray", there)
        assert f"{there}: no Ray cluster answers within 5 s" in ended.has_failed_in_one_line()
    for nowhere in (there, "a..b:1", f"{'a' * 70}:1"):
        ended = autotune("run", "--replay", six, "--ray", nowhere)
        assert f"{nowhere}: nothing answers there" in ended.has_failed_in_one_line()


@pytest.mark.slow
def test_without_ray_a_line_says_how_to_install_it(autotune, six, tmp_path):
    ended = autotune.in_a_new_process(
        "run", "--replay", six, "--ray", "auto", variables=without(tmp_path, "ray")
    )
    said = ended.has_failed_in_one_line()
    assert "--ray needs Ray, which is not installed here: pip install" in said
    assert "[ray]" in said


@pytest.mark.parametrize(
    "text", ["", "a", "ray://a:1", "a:", ":1", "a:0", "a:70000", "a b:1", "a:1:x", "local"]
)
def test_an_address_that_cannot_be_is_refused(autotune, six, text):
    said = autotune("run", "--replay", six, "--ray", text).has_refused_its_usage()
    assert "must be auto, for the cluster that this host belongs to" in said
