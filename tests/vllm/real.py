"""A real vLLM to ask: one release, in a process of its own."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from autotune.launch.op import LoraOp
from tests.patience import PATIENCE_S
from tests.vllm.process import Prepared
from tests.vllm.releases import releases_folder

ORACLE = "import runpy; runpy.run_module('tests.vllm.oracle', run_name='__main__')"


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

    def __init__(self, version: str, log: Path, prepared: Prepared) -> None:
        """Start the process.

        Args:
            version: One of the releases that are unpacked.
            log: Where its log lines go.
            prepared: What the process is forked from.
        """
        self.version = version
        self._log = log
        release = releases_folder() / version
        with ExitStack() as theirs:
            reads, self._asks = _pipe(theirs, is_ours_read=False)
            writes, self._answers = _pipe(theirs, is_ours_read=True)
            errors = theirs.enter_context(log.open("w"))
            streams = (reads, writes, errors)
            self._process = prepared.start(ORACLE, path=[release], streams=streams)
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
        self._asks.close()  # then it ends
        self._answers.close()
        self._process.wait()

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
        self._asks.write(json.dumps(request) + "\n")
        self._asks.flush()
        return [Answer(**answer) for answer in self._read()]

    def defaults(self, questions: Iterable[Question]) -> list[Answer]:
        """What vLLM answers where no folder is given."""
        return self.ask(questions, folder=None, gpu="any")

    def _read(self) -> Any:
        guard = threading.Timer(PATIENCE_S, self._process.kill)
        guard.start()
        try:
            line = self._answers.readline()
        finally:
            guard.cancel()
        if not line:
            log = self._log.read_text()[-4000:]
            raise RuntimeError(f"the process of vLLM {self.version} ended: {log}")
        return json.loads(line)


def _pipe(theirs: ExitStack, *, is_ours_read: bool) -> tuple[TextIO, TextIO]:
    """Both ends of a new pipe: theirs, which the stack closes, and ours."""
    read, write = os.pipe()
    ends = os.fdopen(read), os.fdopen(write, "w")
    ours, other = ends if is_ours_read else reversed(ends)
    return theirs.enter_context(other), ours
