"""The program that ``child`` starts: one engine of the installed vLLM, and its requests.

It reads a job, a line of JSON on stdin, and writes a line of JSON on stdout for everything that it
has to tell. Whatever vLLM prints goes to stderr. It knows nothing of autotune: the interpreter that
vLLM is installed for need not have it.

A job has

- ``arguments``: flags of ``vllm serve``, as they are typed;
- ``adapters``: folders of adapters; request number i gets the one at i modulo their number;
- ``rounds``: in order, each with ``requests``, how many run at once; ``input``, the tokens of a
  prompt; ``first`` and ``last``: steps are timed from a request's token number ``first`` to its
  ``last``, which ends it; and ``seed``, of the prompts;
- ``vocabulary``: token ids are below it;
- ``tells_tokens``: whether the tokens and their log-probabilities are wanted;
- ``takes_turns``: whether it waits for a line on stdin before every round.

A job with ``probe`` has nothing else: it asks what is installed. The lines are

- ``{"installed": {…}}``: vLLM's ``release``, its ``platform``, the ``gpu`` and the ``gpus``;
- ``{"ready": {"start_s": …}}``: the engine can be asked, and has read its adapters, which is not
  counted;
- ``{"served": {…}}``: a round, with what ``_figures`` gives;
- ``{"error": "…"}``: why it ended; the last.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

#: The first id of a token in prompts: those before are special in most vocabularies.
_FIRST_TOKEN = 3

_Tell = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Do the job on stdin."""
    beside = Path(__file__).parent  # its files are autotune's, whatever their names
    sys.path[:] = [each for each in sys.path if Path(each) != beside]
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: Mapping[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    job = json.loads(sys.stdin.readline())
    try:
        if job.get("probe"):
            tell({"installed": installed()})
        else:
            serve(job, tell)
    except BaseException as error:  # noqa: BLE001 - whatever stops vLLM is the answer
        traceback.print_exc()
        tell({"error": _told(error)})
    sys.stderr.flush()
    os._exit(0)  # nothing that vLLM still has open is waited for


def installed() -> dict[str, Any]:
    """What is installed here, and the GPUs that there are."""
    try:
        release = str(import_module("vllm").__version__)
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        return {"release": None}
    platforms: Any = import_module("vllm.platforms")
    cuda: Any = import_module("torch").cuda
    gpus = cuda.device_count() if cuda.is_available() else 0
    return {
        "release": release,
        "platform": str(getattr(platforms.current_platform, "device_type", "") or ""),
        "gpu": cuda.get_device_name(0) if gpus else "",
        "gpus": gpus,
    }


def serve(job: Mapping[str, Any], tell: _Tell) -> None:
    """Start the engine, load the adapters, run every round, and tell of each."""
    started = time.perf_counter()
    engine = _engine(job["arguments"])
    start_s = time.perf_counter() - started
    adapters = _adapters(job["adapters"])
    for each in filter(None, adapters):  # a mixture's have tens of thousands of tensors each, which
        engine.add_lora(each)  # engines that are started at once read at once
    tell({"ready": {"start_s": start_s}})
    for number, asked in enumerate(job["rounds"]):
        if job["takes_turns"] and not sys.stdin.readline():
            return  # whoever gave the job is gone
        tell({"served": {**asked, **_round(engine, adapters, job, asked, number)}})


def _engine(arguments: Sequence[str]) -> Any:  # noqa: ANN401 - vLLM's
    vllm: Any = import_module("vllm")
    parser = import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    given = vllm.EngineArgs.add_cli_args(parser).parse_args(list(arguments))
    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs.from_cli_args(given))


def _adapters(folders: Sequence[str]) -> list[Any]:
    if not folders:
        return [None]
    request = import_module("vllm.lora.request").LoRARequest
    return [request(f"adapter-{n}", n, folder) for n, folder in enumerate(folders, start=1)]


def _round(
    engine: Any,  # noqa: ANN401 - vLLM's
    adapters: Sequence[Any],
    job: Mapping[str, Any],
    asked: Mapping[str, Any],
    number: int,
) -> dict[str, Any]:
    """Serve requests at once, and note when each token of each is there."""
    params = import_module("vllm").SamplingParams(
        max_tokens=asked["last"],
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        logprobs=0 if job["tells_tokens"] else None,
    )
    draw = random.Random(asked["seed"])  # noqa: S311 - prompts, no secrets
    prompts = {
        f"{number}-{index}": [
            draw.randrange(_FIRST_TOKEN, job["vocabulary"]) for _ in range(asked["input"])
        ]
        for index in range(asked["requests"])
    }
    times: dict[str, list[float]] = {name: [] for name in prompts}
    told: dict[str, Any] = {}
    started = time.perf_counter()
    for index, (name, tokens) in enumerate(prompts.items()):
        adapter = adapters[index % len(adapters)]
        engine.add_request(name, {"prompt_token_ids": tokens}, params, lora_request=adapter)
    while engine.has_unfinished_requests():
        for output in engine.step():
            now, seen = time.perf_counter() - started, times[output.request_id]
            told[output.request_id] = output.outputs[0]
            seen += [now] * (len(output.outputs[0].token_ids) - len(seen))
    figures = _figures(list(times.values()), asked["first"])
    if job["tells_tokens"]:
        figures["told"] = [{"prompt": prompts[name], **_tokens(told[name])} for name in prompts]
    return figures


def _figures(times: Sequence[Sequence[float]], first: int) -> dict[str, Any]:
    """The figures of a round.

    Args:
        times: Of each request, when each of its tokens was there, seconds after the first was asked
            for.
        first: The number of the token from which steps are timed.

    Returns:
        ``step_s``: the time of a step while all requests run; None where they never do. ``whole_s``
        and ``output_tokens``: of the whole round. ``ttft_s``: of each request. ``itl_s``: the times
        between tokens, of all requests.
    """
    begun, ended = max(each[first - 1] for each in times), min(each[-1] for each in times)
    steps = min(sum(begun < at <= ended for at in each) for each in times)
    return {
        "step_s": (ended - begun) / steps if steps else None,
        "whole_s": max(each[-1] for each in times),
        "output_tokens": sum(map(len, times)),
        "ttft_s": [each[0] for each in times],
        "itl_s": [after - before for each in times for before, after in pairwise(each)],
    }


def _tokens(completion: Any) -> dict[str, Any]:  # noqa: ANN401 - vLLM's
    """The tokens of a request, and what the model gave for each."""
    tokens = list(completion.token_ids)
    found = [at[token].logprob for at, token in zip(completion.logprobs, tokens, strict=True)]
    return {"tokens": tokens, "logprobs": found}


def _told(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


if __name__ == "__main__":
    main()
