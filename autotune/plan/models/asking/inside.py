"""The program that ``question`` starts: what does the installed vLLM make of a model?

It reads a question in JSON on stdin and writes the answer in JSON on stdout. Whatever else vLLM
prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from autotune.plan.models.asking.pretended import OnMeta, pretend_gpu, pretend_groups
from autotune.plan.models.asking.wrapped import layers_with_lora


def main() -> None:
    """Answer the question on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    question = json.load(sys.stdin)
    try:
        answer = answered(question)
    except Exception as error:  # noqa: BLE001 - whatever stops vLLM is its answer
        traceback.print_exc()
        answer = {"error": _told(error)}
    with answers:
        json.dump(answer, answers)
    sys.stderr.flush()
    os._exit(0)  # nothing that vLLM still has open is waited for


def answered(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a question, of which ``question`` says what is in them."""
    pretend_gpu()
    _look_at_classes_here()
    _know_any_config(Path(question["folder"]))
    config = _config(question)
    torch: Any = import_module("torch")
    torch.set_default_dtype(torch.bfloat16)
    pretend_groups(question["tensor_parallel"], question["data_parallel"])
    loader: Any = import_module("vllm.model_executor.model_loader.utils")
    within = import_module("vllm.config").set_current_vllm_config
    with within(config):
        with OnMeta(), torch.device("meta"):
            model = loader.initialize_model(config)
        answer = layers_with_lora(model, config)
    return {"release": str(import_module("vllm").__version__), **answer}


def _config(question: Mapping[str, Any]) -> Any:  # noqa: ANN401 - vLLM's
    """The configuration that vLLM makes of such a server's flags."""
    arguments: Any = import_module("vllm.engine.arg_utils").EngineArgs
    flags = question["flags"]
    unknown = [name for name in flags if name not in arguments.__dataclass_fields__]
    if unknown:
        raise ValueError(f"this release has no --{unknown[0].replace('_', '-')}")
    gpus, servers = question["tensor_parallel"], question["data_parallel"]
    if servers > 1:
        flags = {**flags, "data_parallel_size": servers}
    return arguments(
        model=question["folder"],
        tensor_parallel_size=gpus,
        distributed_executor_backend="mp" if gpus > 1 else "uni",
        load_format="dummy",
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_lora=True,
        **flags,
    ).create_engine_config()


def _look_at_classes_here() -> None:
    """Have vLLM look at a model's class in this process, and not start another for it."""
    registry: Any = import_module("vllm.model_executor.models.registry")
    registry._run_in_subprocess = lambda function: function()  # noqa: SLF001 - its only name


def _know_any_config(folder: Path) -> None:
    """Have ``transformers`` read a config whose class is code beside the model, without that."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    transformers: Any = import_module("transformers")
    own: Any = import_module("vllm.transformers_utils.config")._CONFIG_REGISTRY  # noqa: SLF001
    kind, base = config.get("model_type"), transformers.PretrainedConfig
    if isinstance(kind, str) and kind not in own:
        # Some fields are looked at before those of the file are set.
        fields = {name: value for name, value in config.items() if not hasattr(base, name)}
        made = type("AnyConfig", (base,), {**fields, "model_type": kind})
        try:
            transformers.AutoConfig.register(kind, made)
        except ValueError:  # it knows the model
            return


def _told(error: Exception) -> str:
    """What an error says, in a line."""
    errors = getattr(error, "errors", None)
    if callable(errors):  # pydantic's, which also writes out everything that it was given
        first: Mapping[str, Any] = next(iter(errors()), {})
        return str(first.get("msg", error)).removeprefix("Value error, ")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:  # such as an assertion without words
        lines = [each.line for each in traceback.extract_tb(error.__traceback__)[-1:] if each.line]
    return ": ".join([type(error).__name__, *lines[:1]])


if __name__ == "__main__":
    main()
