"""Ray clusters on this machine, whose GPUs are made up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.patience import PATIENCE_S

_ROOT = Path(__file__).parents[1]
_RAY = "from ray.scripts.scripts import main; main()"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass
class Cluster:
    """A head and perhaps more nodes, each a process with what it has started.

    Attributes:
        address: The head's HOST:PORT.
        folder: Where Ray keeps its files; short, as its sockets lie there.
        nodes: The processes.
    """

    address: str
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *flags: str, gpus: int) -> subprocess.Popen[bytes]:
        """Start a node."""
        log = self.folder / f"{len(self.nodes)}.log"
        with log.open("wb") as out:
            node = subprocess.Popen(  # noqa: S603 - our own command
                [
                    *(sys.executable, "-c", _RAY, "start", "--block", *flags),
                    *("--num-gpus", str(gpus), "--num-cpus", "2"),
                    *("--object-store-memory", "80000000", "--disable-usage-stats"),
                ],
                env=os.environ | _QUIET | {"PYTHONPATH": self._path()},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        late = time.monotonic() + PATIENCE_S
        while b"To terminate the Ray runtime" not in log.read_bytes():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < late, log.read_text()
            time.sleep(0.05)
        return node

    def measurers(self) -> list[psutil.Process]:
        """The processes of the actors."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                found += psutil.Process(node.pid).children(recursive=True)
        return [each for each in found if _is_measurer(each)]

    def lets_go(self) -> None:
        """Wait until the actors' processes have ended: Ray ends them after it has said so."""
        deadline = time.monotonic() + PATIENCE_S
        while self.measurers():
            assert time.monotonic() < deadline, self.measurers()
            time.sleep(0.1)

    def end(self, node: subprocess.Popen[bytes], number: int) -> None:
        """End a node with a signal, and kill what is left of it."""
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(node.pid).children(recursive=True)
            node.send_signal(number)
            if number != signal.SIGKILL:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.wait(20)
            for each in below:
                with contextlib.suppress(psutil.Error):
                    each.kill()
        node.kill()
        node.wait()

    def _path(self) -> str:
        return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))


def _is_measurer(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "Measurer" in " ".join(process.cmdline())
    return False


@contextlib.contextmanager
def made_up_cluster(gpus: int) -> Iterator[Cluster]:
    """A cluster of one node, with so many GPUs that are made up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    cluster = Cluster(f"127.0.0.1:{port}", folder)
    head = (
        *("--head", "--port", str(port), "--node-ip-address", "127.0.0.1"),
        *("--include-dashboard=false", "--no-monitor", "--temp-dir", str(folder)),
    )
    try:
        cluster.start(*head, gpus=gpus)
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            cluster.end(node, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)
