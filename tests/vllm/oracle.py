"""Answers look-ups with the vLLM that is first on the path: ``python -m tests.vllm.oracle``.

A process of its own, because two releases cannot be imported into one. It reads a request and
writes its answers, each a line of JSON, until its input ends. The first line says which vLLM it is.

Nothing of vLLM is replaced but the name of the GPU, which is not there.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO


def main(answers: TextIO) -> None:
    """Import vLLM, then answer."""
    import torch

    # vLLM is not among what mypy sees.
    from vllm.lora.ops.triton_ops import utils  # type: ignore[import-not-found,unused-ignore]

    _write(answers, utils.__file__)
    for line in sys.stdin:
        request = json.loads(line)
        torch.cuda.get_device_name = lambda *_, gpu=request["gpu"]: gpu
        os.environ.pop("VLLM_TUNED_CONFIG_FOLDER", None)
        if request["folder"] is not None:
            os.environ["VLLM_TUNED_CONFIG_FOLDER"] = request["folder"]
        utils.load_lora_op_config.cache_clear()
        utils.get_lora_op_configs.cache_clear()
        _write(answers, [_answer(utils, arguments) for arguments in request["questions"]])


def _answer(utils: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"config": utils.get_lora_op_configs(**arguments)}
    except Exception as error:  # noqa: BLE001 - whatever stops vLLM is the answer
        return {"error": type(error).__name__, "text": str(error)}


def _write(answers: TextIO, content: object) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    # vLLM logs to standard output: from here on that is standard error, for C code, too.
    with os.fdopen(os.dup(1), "w") as protocol:
        os.dup2(2, 1)
        main(protocol)
