"""Whether a server computes the same with the folder: its log-probabilities, beside float32's.

The model has its own sizes, a few layers, and random weights so large that adapters change what it
says. Every server continues the same prompts, and a computation in float32 by transformers says
what the log-probability of each of its tokens should have been. What bfloat16 costs is seen by how
far vLLM's defaults are off. A folder with a wrong kernel is off by much more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import InputError
from autotune.plan.models import read_config
from autotune.plan.study import StudyPlan
from autotune.serve.child import program
from autotune.serve.engine_flags import common_flags
from autotune.serve.job import Case, Load, ServedModel
from autotune.serve.random_adapter import write_adapter
from autotune.serve.side_by_side import VARIANTS, Setting, told_by

#: Decoder layers of the model: enough for one layer to read what another one wrote.
_LAYERS = 2

#: Tokens of a prompt, and those that are compared.
_INPUT, _OUTPUT = 24, 12

#: Folders are wrong that are off by so many times as much as vLLM's defaults are. Two servers with
#: the same files, whose kernels add in another order, are within a few per cent of one another.
_MOST_TIMES = 2.0

#: Adapters have to change a log-probability by so many times the default's error to be compared.
_LEAST_EFFECT = 4.0

#: Fields of a config that say how weights are stored, or which token is what.
_LEFT_OUT = ("quantization_config", "auto_map", "pad_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One number of requests: how far each server's log-probabilities are from float32's.

    Every error is the root of the mean square over all tokens, in nats.

    Attributes:
        requests: How many ran at once.
        default: The error of the first server with vLLM's defaults.
        again: The error of the second one.
        folder: The error of the server with the folder.
        effect: How far adapters change what float32 gives.
    """

    requests: int
    default: float
    again: float
    folder: float
    effect: float

    @property
    def verdict(self) -> str:
        """``right``, ``wrong``, or ``unknown`` where the defaults are as far off as the folder."""
        most = max(self.default, self.again)
        if not math.isfinite(self.folder):
            return "wrong"
        if not _LEAST_EFFECT * most <= self.effect:
            return "unknown"
        return "wrong" if self.folder > _MOST_TIMES * most else "right"

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON-ready values."""
        errors = {name: round(getattr(self, name), 6) for name in self.__slots__}
        return {**errors, "verdict": self.verdict}


def check_outputs(
    plan: StudyPlan, served: ServedModel, load: Load, setting: Setting
) -> list[Compared]:
    """Compare what servers with the folder and without it compute.

    Args:
        plan: Names the model.
        served: The model as it was served for its time.
        load: The requests of that.
        setting: Where the servers run.

    Raises:
        InputError: The model cannot be made so.
        WorkerDied: A program ended early.
    """
    small = _written(plan, served, setting)
    load = replace(load, inputs=(_INPUT,), outputs=(_OUTPUT,), repeats=0, over_http=False)
    setting.say(f"outputs: a model of {_LAYERS} layers with random weights")
    told: dict[str, list[dict[str, Any]]] = {}
    adapted = [each for each in VARIANTS if each.has_lora]
    lines = told_by(adapted, small, load, setting, purpose="outputs ", tells_tokens=True)
    for variant, line in lines:
        if "served" in line:
            told.setdefault(variant.name, []).append(line["served"])
            case = Case(_INPUT, _OUTPUT, line["served"]["requests"])
            setting.say(f"outputs: {case} served ({variant.name})")
    sequences = [
        {"variant": name, "case": each["requests"], "adapter": index % len(small.adapters), **one}
        for name, rounds_of in told.items()
        for each in rounds_of
        for index, one in enumerate(each["told"])
    ]
    _judge(sequences, small, setting)
    setting.say(f"outputs: {len(sequences)} sequences computed in float32")
    return [compared(sequences, case) for case in load.cases]


def small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config with few layers, to be filled with random weights.

    Raises:
        InputError: It does not say how many layers the model has.
    """
    small = {name: value for name, value in config.items() if name not in _LEFT_OUT}
    inner = small.get("text_config")
    if isinstance(inner, dict) and "num_hidden_layers" in inner:
        raise InputError(
            "--check-outputs is for language models: the model is of several media; leave it out"
        )
    count = small.get("num_hidden_layers")
    if isinstance(count, bool) or not isinstance(count, int):
        raise InputError("--check-outputs: the model's config has no num_hidden_layers")
    kept = min(count, _LAYERS)
    for name, value in small.items():
        if isinstance(value, list) and len(value) == count:  # such as layer_types
            small[name] = value[:kept]
    return {
        **small,
        "num_hidden_layers": kept,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _written(plan: StudyPlan, served: ServedModel, setting: Setting) -> ServedModel:
    """The small model with its adapters, written."""
    model = plan.model
    if model is None:
        raise InputError("--check-outputs needs a model: give --model")
    small = small_config(read_config(model.config))
    server, layers = model.adapted(plan.lora, small)
    folder = setting.scratch / "small"
    log = setting.log("made")
    python = setting.installed.python
    with program(python, "reference_program", name="making weights", log=log) as child:
        child.give({"make": {"config": small, "folder": str(folder), "seed": 0}})
        for _ in child.lines():
            pass
    adapters = [
        write_adapter(setting.scratch / f"distinct-{n}", layers, server.rank, seed=100 + n)
        for n in range(server.active_loras or server.max_loras)
    ]
    context = ("--max-model-len", str(_INPUT + _OUTPUT + 4))
    flags = ("--no-enable-prefix-caching", *context, *common_flags(plan, model), *served.after)
    return replace(
        served,
        source=str(folder),
        vocabulary=small["vocab_size"],
        common=flags,
        adapters=tuple(adapters),
        tokenizer=None,
    )


def _judge(sequences: Sequence[dict[str, Any]], small: ServedModel, setting: Setting) -> None:
    """Add to every sequence what float32 gives, with its adapter and without."""
    asked = [{name: each[name] for name in ("adapter", "prompt", "tokens")} for each in sequences]
    adapters = [str(each) for each in small.adapters]
    job = {"judge": {"folder": small.source, "adapters": adapters, "sequences": asked}}
    name, log = "the computation in float32", setting.log("float32")
    with program(setting.installed.python, "reference_program", name=name, log=log) as child:
        child.give(job)
        for line in child.lines():
            judged = line.get("judged")
            if judged:
                sequences[judged["index"]].update(
                    {"float32": judged["logprobs"], "without": judged["without"]}
                )
        if any("float32" not in each for each in sequences):
            raise child.died("it computed only some of the sequences")


def compared(sequences: Iterable[Mapping[str, Any]], case: Case) -> Compared:
    """How far each server is from float32 at one number of requests.

    Args:
        sequences: Each with its ``variant``, its ``case``, and the log-probabilities of its tokens:
            ``logprobs`` as served, ``float32``, and ``without`` the adapter.
        case: The requests.
    """
    here = [each for each in sequences if each["case"] == case.requests]
    of = {
        variant.name: [each for each in here if each["variant"] == variant.name]
        for variant in VARIANTS
    }
    return Compared(
        requests=case.requests,
        default=_apart(of["default"], "logprobs"),
        again=_apart(of["default again"], "logprobs"),
        folder=_apart(of["folder"], "logprobs"),
        effect=_apart(of["default"], "without"),
    )


def _apart(sequences: Iterable[Mapping[str, Any]], name: str) -> float:
    """How far some log-probabilities are from float32's: the root of the mean square."""
    squares = [
        (one - right) ** 2
        for each in sequences
        for one, right in zip(each[name], each["float32"], strict=True)
    ]
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan
