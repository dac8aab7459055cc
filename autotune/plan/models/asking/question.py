"""The process that asks the installed vLLM: what it is given, its time limit, its log.

The question has ``folder``, which has the model's ``config.json``; ``tensor_parallel`` and
``data_parallel``, the sizes of the groups; and ``flags``, the server's other ones by the names of
vLLM's ``EngineArgs``. The answer has

- ``release``: vLLM's version;
- ``has_media``: whether the model is of several media;
- ``renamed``: pairs of what checkpoints have at the start of a path and what vLLM has there;
  ``renamed_inside``: the same within a path;
- ``layers``: for each layer its ``path`` in vLLM; its ``split``, as ``modules`` calls it; what it
  ``reads`` and ``writes`` (a size for each slice) on the first GPU; the ``parts`` that an adapter
  names; whether it is ``computed``, ``is_linear`` and has LoRA ``only_if_named``. Experts have
  ``middle``, what w2 reads; ``experts``, the number of all, and ``local_experts``, those of the
  first GPU; and ``top_k``, too.

An answer with ``error`` has nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from autotune.errors import InputError, printable

#: Wall-clock time. It takes half a minute where nothing else runs, most of it to import vLLM.
_LIMIT_S = 600

_PROGRAM = "autotune.plan.models.asking.inside"

#: No GPU is used and nothing is fetched; what vLLM keeps goes into a folder that is removed.
_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

#: What a server's environment may have that would change what is answered, or write files.
_LEFT_OUT = ("AUTOTUNE_TRACE", "VLLM_LORA_ENABLE_DUAL_STREAM", "VLLM_TUNED_CONFIG_FOLDER")


def has_vllm() -> bool:
    """Whether vLLM is installed beside autotune."""
    return importlib.util.find_spec("vllm") is not None


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """Have vLLM answer a question.

    Raises:
        InputError: vLLM refuses the model or the flags, or does not answer in time. The message
            names the file with its log.
    """
    with tempfile.TemporaryDirectory(prefix="autotune-ask-") as folder:
        handle, log = tempfile.mkstemp(prefix="autotune-ask-vllm-", suffix=".log")
        try:
            with os.fdopen(handle, "wb") as to_log:
                answer = _read(_run(question, folder, to_log))
        except BaseException:  # such as Ctrl-C
            Path(log).unlink()
            raise
    if "error" in answer:
        raise InputError(
            f"vLLM cannot say which layers it makes of the model: {printable(answer['error'])}; "
            f"its log is {log}"
        )
    Path(log).unlink()
    return answer


def _run(question: Mapping[str, Any], folder: str, log: IO[bytes]) -> str | None:
    """What the program prints; None where it takes too long."""
    with subprocess.Popen(  # noqa: S603 - this Python, and a program of autotune
        [sys.executable, "-m", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=folder,
        env=_environment(folder),
        start_new_session=True,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            return process.communicate(json.dumps(question), timeout=_LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _environment(folder: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    paths = [each for each in kept.get("PYTHONPATH", "").split(os.pathsep) if each]
    here = Path(__file__).parents[4]
    if "-packages" not in here.name:  # a clone, which only this process may have on its path
        paths.append(str(here))
    path = os.pathsep.join(str(Path(each).absolute()) for each in paths)
    return {**kept, **_SETTINGS, "PYTHONPATH": path, "VLLM_CACHE_ROOT": folder}


def _read(text: str | None) -> dict[str, Any]:
    if text is None:
        return {"error": f"no answer within {_LIMIT_S} s"}
    try:
        answer = json.loads(text)
    except ValueError:
        return {"error": "its process ended without an answer"}
    return answer if isinstance(answer, dict) else {"error": "its answer is none"}
