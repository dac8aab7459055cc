"""A real vLLM to ask: one release, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from autotune.launch.op import LoraOp
from tests.patience import PATIENCE_S
from tests.vllm.releases import ROOT, releases_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The arguments of one call of ``get_lora_op_configs``, by the names that it gives them."""

    op_type: str
    max_loras: int
    batch: int
    hidden_size: int
    rank: int
    num_slices: int
    add_inputs: bool | None = None
    moe_intermediate_size: int | None = None

    @classmethod
    def at(cls, key: tuple[int, ...], op: LoraOp, *, add_inputs: bool | None = None) -> Question:
        """The question with which vLLM goes down these keys."""
        max_loras, num_slices, batch, k, n, *intermediate = key
        hidden_size, rank = (k, n) if op is LoraOp.SHRINK else (n, k)
        return cls(
            op_type=op.value,
            max_loras=max_loras,
            batch=batch,
            hidden_size=hidden_size,
            rank=rank,
            num_slices=num_slices,
            add_inputs=add_inputs,
            moe_intermediate_size=intermediate[0] if intermediate else None,
        )


class Answer(NamedTuple):
    """What vLLM returned, or the exception that it stopped with."""

    config: Any = None
    error: str | None = None
    text: str | None = None


class RealVllm:
    """One release's ``get_lora_op_configs``; each question is answered from the files anew."""

    def __init__(self, version: str, log: Path) -> None:
        """Start the process.

        Args:
            version: One of the releases that are unpacked.
            log: Where its log lines go.
        """
        self.version = version
        self._log = log
        release = releases_folder() / version
        inherited = os.environ.get("PYTHONPATH")
        # Neither a setting of vLLM's nor one of ours for Triton may change what is imported.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "TRITON_"))}
        clean["PYTHONPATH"] = os.pathsep.join([str(release), *([inherited] if inherited else [])])
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.vllm.oracle"],
                cwd=ROOT,
                env=clean,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        imported = self._read()
        if not Path(imported).is_relative_to(release):
            raise RuntimeError(f"vLLM {version} should be imported from {release}: got {imported}")

    def __enter__(self) -> RealVllm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=PATIENCE_S)

    def ask(self, questions: Iterable[Question], *, folder: Path | None, gpu: str) -> list[Answer]:
        """What vLLM answers.

        Args:
            questions: Any number of questions.
            folder: What ``VLLM_TUNED_CONFIG_FOLDER`` is; not set, where None.
            gpu: What ``torch.cuda.get_device_name()`` gives.

        Returns:
            One answer to each question, in order.
        """
        request = {
            "folder": None if folder is None else str(folder),
            "gpu": gpu,
            "questions": [asdict(question) for question in questions],
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Answer(**answer) for answer in self._read()]

    def defaults(self, questions: Iterable[Question]) -> list[Answer]:
        """What vLLM answers where no folder is given."""
        return self.ask(questions, folder=None, gpu="any")

    def _read(self) -> Any:
        assert self._process.stdout is not None
        guard = threading.Timer(PATIENCE_S, self._process.kill)
        guard.start()
        try:
            line = self._process.stdout.readline()
        finally:
            guard.cancel()
        if not line:
            log = self._log.read_text()[-4000:]
            raise RuntimeError(f"the process of vLLM {self.version} ended: {log}")
        return json.loads(line)
