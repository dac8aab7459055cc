"""The program that says what a model computes in float32: its weights, and log-probabilities.

It runs in the interpreter that vLLM is installed for, which has PyTorch and transformers, and
speaks as ``engine_program`` does. A job has ``make`` or ``judge``.

- ``make``: ``config``, a model's; ``folder``, which gets a checkpoint of random weights, so large
  that what a layer writes is as large as what it reads; ``seed``. The line is ``{"made": {}}``.
- ``judge``: ``folder``, such a checkpoint; ``adapters``, folders; and ``sequences``, each with
  ``adapter``, its number, ``prompt`` and ``tokens``. The lines are ``{"judged": {…}}`` with
  ``index``, the sequence's, ``logprobs``, those of its tokens, and ``without``, the same of the
  model without the adapter.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

_Tell = Callable[[Mapping[str, Any]], None]

#: What PEFT puts before every path, and how many sequences are computed at once.
_ABOVE, _AT_ONCE = "base_model.model.", 8


def main() -> None:
    """Do the job on stdin."""
    beside = Path(__file__).parent  # its files are autotune's, whatever their names
    sys.path[:] = [each for each in sys.path if Path(each) != beside]
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: Mapping[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    job = json.load(sys.stdin)
    try:
        if "make" in job:
            make(job["make"])
            tell({"made": {}})
        else:
            judge(job["judge"], tell)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        tell({"error": f"{type(error).__name__}: {first}"})
    sys.stderr.flush()
    os._exit(0)


def make(asked: Mapping[str, Any]) -> None:
    """Write a checkpoint of random weights, in bfloat16."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    folder = Path(asked["folder"])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asked["config"]), encoding="utf-8")
    config = transformers.AutoConfig.from_pretrained(folder)
    device = _device(torch)
    with torch.device(device):  # transformers fills weights, too: on a processor that takes minutes
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    draw = torch.Generator(device).manual_seed(asked["seed"])
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            reads = weight.shape[-1]
            deviation = 1.0 if weight is embedding else 1 / math.sqrt(reads)
            for row in weight.view(-1, reads).split(4096):
                row.copy_(torch.randn(row.shape, generator=draw, device=device) * deviation)
    model.save_pretrained(folder)


def judge(asked: Mapping[str, Any], tell: _Tell) -> None:
    """Tell the log-probabilities of every sequence's tokens, in float32."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(asked["folder"]).float().eval()
    model = model.to(_device(torch))
    sequences = asked["sequences"]
    without = _logprobs(model, sequences)
    for number, folder in enumerate(asked["adapters"]):
        mine = [index for index, each in enumerate(sequences) if each["adapter"] == number]
        with torch.no_grad():
            undo = [_added(model, *each) for each in _products(Path(folder), model.device)]
        for index, found in zip(
            mine, _logprobs(model, [sequences[index] for index in mine]), strict=True
        ):
            told = {"index": index, "logprobs": found, "without": without[index]}
            tell({"judged": told})
        with torch.no_grad():
            for weight, before in reversed(undo):
                weight.copy_(before)


def _device(torch: Any) -> str:  # noqa: ANN401 - PyTorch
    return "cuda" if torch.cuda.is_available() else "cpu"


def _products(folder: Path, device: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - PyTorch's
    """What an adapter adds to each layer's weight, by the layer's path."""
    load = import_module("safetensors.torch").load_file
    weights = load(folder / "adapter_model.safetensors")
    table = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    scale = table["lora_alpha"] / table["r"]
    for name, a in weights.items():
        path = name.removeprefix(_ABOVE)
        if name.endswith(".lora_A.weight"):
            b = weights[name.replace(".lora_A.", ".lora_B.")]
            product = scale * (b.to(device).float() @ a.to(device).float())
            yield path.removesuffix(".lora_A.weight"), product
        elif name.endswith(".lora_embedding_A"):  # a row of the weight is a token's
            b = weights[name.replace("_embedding_A", "_embedding_B")]
            product = scale * (b.to(device).float() @ a.to(device).float())
            yield path.removesuffix(".lora_embedding_A"), product.T


def _added(model: Any, path: str, product: Any) -> tuple[Any, Any]:  # noqa: ANN401 - PyTorch's
    """Add to a layer's weight; the weight, and what it was before.

    transformers may have the layers of all experts in one parameter.
    """
    above, _, last = path.rpartition(".")
    try:
        weight = model.get_submodule(path).weight
    except AttributeError:
        holder, _, expert = above.rpartition(".")
        experts = model.get_submodule(holder)
        name = "down_proj" if last in ("down_proj", "w2") else "gate_up_proj"
        weight = getattr(experts, name)[int(expert)]
        if name == "gate_up_proj":
            half = weight.shape[0] // 2
            weight = weight[half:] if last in ("up_proj", "w3") else weight[:half]
    if weight.shape != product.shape:
        raise ValueError(
            f"{path} is {tuple(product.shape)} in the adapter and {tuple(weight.shape)} in the "
            "model"
        )
    before = weight.detach().clone()
    weight += product
    return weight, before


def _logprobs(model: Any, sequences: Sequence[Mapping[str, Any]]) -> list[list[float]]:  # noqa: ANN401 - PyTorch's
    """The log-probability of every sequence's tokens, each after those before it."""
    torch: Any = import_module("torch")
    found: list[list[float]] = []
    for begun in range(0, len(sequences), _AT_ONCE):
        some = sequences[begun : begun + _AT_ONCE]
        ids = torch.tensor([[*each["prompt"], *each["tokens"]] for each in some])
        count = len(some[0]["tokens"])
        with torch.no_grad():
            logits = model(ids.to(model.device), use_cache=False).logits.float()
        ahead = torch.log_softmax(logits[:, -count - 1 : -1], dim=-1)
        tokens = ids[:, -count:, None].to(ahead.device)
        found += ahead.gather(-1, tokens)[..., 0].tolist()
    return found


if __name__ == "__main__":
    main()
