"""What every engine is asked: a model with its adapters, and which requests run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import InputError, printable
from autotune.plan.documents import expanded, is_folder
from autotune.plan.model import ModelTable
from autotune.plan.models import read_adapter, read_config
from autotune.plan.study import StudyPlan
from autotune.serve.engine_flags import check_after, common_flags, lora_flags, variables_of
from autotune.serve.random_adapter import WEIGHTS, write_adapter

#: Steps are timed from a request's token of this number on: the prompts of all are read by then.
_FIRST_TIMED = 16

#: Prompts are random tokens, without the first three, which are often special.
_LEAST_VOCABULARY = 8

#: What a server can hold where nobody says so: little, so that it has room for many sequences.
_CONTEXT = 4096

#: Engines that share a GPU have so much more room than the requests need, and this at least; and so
#: little of the GPU has to be free for one to start.
_SPARE, _LEAST_ROOM_BYTES, _SHARE = 1.25, 2**30, 0.05

#: Room is handed out in blocks of so many tokens at most.
_BLOCK = 64

#: The flag by which vLLM is told which share of a GPU an engine takes.
_SHARE_FLAG = "--gpu-memory-utilization"


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """Requests that run at once.

    Attributes:
        input: Tokens of a prompt.
        output: Tokens that each gets.
        requests: How many there are.
    """

    input: int
    output: int
    requests: int

    def __str__(self) -> str:
        return f"{self.requests} request{'' if self.requests == 1 else 's'}"

    def as_dict(self) -> dict[str, int]:
        """The case as JSON-ready values."""
        return {"requests": self.requests, "input": self.input, "output": self.output}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Which requests every engine serves.

    Attributes:
        requests: How many run at once.
        inputs: Tokens of a prompt.
        outputs: Tokens that each request gets, 2 or more.
        repeats: How often each case is timed, after once for nothing.
        over_http: Whether requests come over HTTP, from vLLM's own client.
        at_once: Whether all engines are started at once, on one GPU, and take turns.
    """

    requests: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    repeats: int
    over_http: bool = False
    at_once: bool = False

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every combination, the number of requests rising fastest."""
        return tuple(
            Case(tokens, output, requests)
            for tokens in self.inputs
            for output in self.outputs
            for requests in self.requests
        )

    @property
    def context(self) -> int:
        """The tokens of the longest request."""
        return max(self.inputs) + max(self.outputs)

    def rounds(self) -> Iterator[dict[str, int]]:
        """What ``engine_program`` takes: every case once for nothing, and then for its time."""
        for case in self.cases:
            for number in range(self.repeats + 1):
                first = min(_FIRST_TIMED, max(1, case.output // 2))
                yield {**case.as_dict(), "first": first, "last": case.output, "seed": number}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model, and what vLLM is started with for it.

    Attributes:
        name: The model, as the user gave it.
        source: What vLLM is given as the model.
        vocabulary: How many tokens it knows.
        common: The flags of every server, but for the model.
        with_lora: More flags, of those with LoRA.
        adapters: The adapters' folders.
        tokenizer: The folder of a tokenizer in place of the model's own; None for that.
        variables: Environment variables of every server.
        after: The last flags of ``common``: those that the user gave after ``--``, and before them
            those of engines that share a GPU.
    """

    name: str
    source: str
    vocabulary: int
    common: tuple[str, ...]
    with_lora: tuple[str, ...]
    adapters: tuple[Path, ...]
    tokenizer: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        plan: StudyPlan,
        scratch: Path,
        load: Load,
        *,
        after: Sequence[str] = (),
        has_weights: bool = False,
    ) -> ServedModel:
        """Prepare what a study's model is served with.

        Args:
            plan: Names a model.
            scratch: A folder for configs and adapters.
            load: The requests.
            after: More flags of vLLM.
            has_weights: Whether the model's own weights are served, and not random ones.

        Raises:
            InputError: There is no model, or vLLM cannot serve it so.
        """
        model, config = check_asked(plan, load, after)
        server, layers = model.adapted(plan.lora)
        count = server.active_loras or server.max_loras
        adapters = []
        for number in range(count):
            folder = scratch / f"adapter-{number + 1}"
            given = model.adapter[number % len(model.adapter)] if model.adapter else None
            if given is not None and (own := _own_adapter(given)) is not None:
                adapters.append(own)
                continue
            share = scratch / "adapter-1" if (scratch / "adapter-1").exists() else None
            adapters.append(write_adapter(folder, layers, server.rank, seed=number, share=share))
        source = _folder_of(model.config, config, scratch, has_weights=has_weights)
        context = _context(config, load)
        if load.at_once:
            after = [*_shared(config, load, context, model.tensor_parallel, after), *after]
        return cls(
            name=model.config,
            source=source,
            vocabulary=_vocabulary(config, model.config),
            common=(
                "--no-enable-prefix-caching",
                *([] if has_weights else ["--load-format", "dummy"]),
                *("--max-model-len", str(context)),
                *common_flags(plan, model),
                *after,
            ),
            with_lora=tuple(lora_flags(model, rank=server.rank, max_loras=server.max_loras)),
            adapters=tuple(adapters),
            variables=variables_of(model),
            after=tuple(after),
        )

    def flags(self, *, has_lora: bool) -> list[str]:
        """The flags of a server, but for the model and its tokenizer."""
        return [*self.common, *(self.with_lora if has_lora else ())]

    def job(self, load: Load, *, has_lora: bool, tells_tokens: bool) -> dict[str, Any]:
        """What ``engine_program`` takes.

        Args:
            load: The requests.
            has_lora: Whether the requests have adapters.
            tells_tokens: Whether tokens and their log-probabilities are wanted.
        """
        start = ("--model", self.source, "--skip-tokenizer-init")
        return {
            "arguments": [*start, *self.flags(has_lora=has_lora)],
            "adapters": [str(each) for each in self.adapters] if has_lora else [],
            "rounds": list(load.rounds()),
            "vocabulary": self.vocabulary,
            "tells_tokens": tells_tokens,
            "takes_turns": load.at_once,
        }


def check_asked(
    plan: StudyPlan, load: Load, after: Sequence[str]
) -> tuple[ModelTable, Mapping[str, Any]]:
    """The model and its config, where a server could be asked so, as far as autotune knows.

    Args:
        plan: Names a model.
        load: The requests.
        after: More flags of vLLM.

    Raises:
        InputError: There is no model, or vLLM cannot serve it so.
    """
    model = plan.model
    if model is None:
        raise InputError(
            "--server needs a model: give --model with the server's flags, or a study file "
            "with [model]"
        )
    check_after(after)
    common_flags(plan, model)
    most = plan.limits.get("max_num_seqs")
    if most is not None and max(load.requests) > most:
        raise InputError(
            f"--requests {max(load.requests)} never run at once with --max-num-seqs {most}; give "
            "fewer, or a larger --max-num-seqs"
        )
    config = read_config(model.config)
    if not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{printable(model.config)} has no model_type, without which vLLM reads no config; "
            "give the model's own config.json"
        )
    _vocabulary(config, model.config)
    _context(config, load)
    for each in model.adapter:
        read_adapter(each)
    return model, config


def _own_adapter(source: str) -> Path | None:
    """Where an adapter with weights is, here or on the hub; None where only its config is there."""
    folder = expanded(source)
    if not folder.exists():
        return Path(source)
    folder = folder if is_folder(folder) else folder.parent
    there = any((folder / name).is_file() for name in (WEIGHTS, "adapter_model.bin"))
    return folder.absolute() if there else None


def _folder_of(source: str, config: Mapping[str, Any], scratch: Path, *, has_weights: bool) -> str:
    """What vLLM is given as the model: random weights need the config alone."""
    folder = expanded(source)
    if is_folder(folder):
        return str(folder.absolute())
    if has_weights:
        if folder.name == "config.json" and folder.is_file():
            return str(folder.absolute().parent)
        if folder.exists():
            raise InputError(
                f"--weights: {printable(source)} has no weights beside it; name the model's folder "
                "or its id on the hub"
            )
        return source
    made = scratch / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(made)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model of a model of several media, or the config itself."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _vocabulary(config: Mapping[str, Any], source: str) -> int:
    value = _text_config(config).get("vocab_size")
    if isinstance(value, bool) or not isinstance(value, int) or value < _LEAST_VOCABULARY:
        raise InputError(
            f"{printable(source)}: vocab_size must be {_LEAST_VOCABULARY} or more: got {value!r}"
        )
    return value


def _context(config: Mapping[str, Any], load: Load) -> int:
    """The server's ``--max-model-len``."""
    most = _text_config(config).get("max_position_embeddings")
    most = most if isinstance(most, int) and not isinstance(most, bool) else _CONTEXT
    if load.context > most:
        raise InputError(
            f"the model has room for {most} tokens: got {load.context} of the longest request; "
            "give a smaller --input or --output"
        )
    return max(load.context, min(_CONTEXT, most))


def _shared(
    config: Mapping[str, Any], load: Load, context: int, gpus: int, after: Sequence[str]
) -> tuple[str, ...]:
    """The flags of engines that share a GPU: room for the keys and values of all requests.

    Without them each engine takes what is left of the GPU's memory, and counts what the others
    take meanwhile as its own. That is so, too, where the user says which share each is to take.
    """
    if _SHARE_FLAG in (each.partition("=")[0].replace("_", "-") for each in after):
        return ()
    blocks = math.ceil(load.context / _BLOCK) * _BLOCK
    tokens = max(context, max(load.requests) * blocks)
    room = max(_LEAST_ROOM_BYTES, _SPARE * tokens * _token_bytes(_text_config(config), gpus))
    return ("--kv-cache-memory-bytes", str(round(room)), _SHARE_FLAG, str(_SHARE))


def _token_bytes(config: Mapping[str, Any], gpus: int) -> int:
    """What a GPU keeps of a token, in all layers; 0 where the config does not say it.

    Models of multi-head latent attention keep one vector of a token, and each GPU all of it.
    """

    def number(name: str) -> int:
        value = config.get(name)
        return value if isinstance(value, int) and value > 0 else 0

    heads = number("num_attention_heads")
    width = number("head_dim") or (number("hidden_size") // heads if heads else 0)
    values = 2 * max(1, (number("num_key_value_heads") or heads) // gpus) * width
    if number("kv_lora_rank"):
        values = number("kv_lora_rank") + number("qk_rope_head_dim")
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return number("num_hidden_layers") * values * (4 if dtype == "float32" else 2)
