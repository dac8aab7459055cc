"""A server of vLLM over HTTP, and vLLM's own client: ``vllm serve`` and ``vllm bench serve``."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.serve.child import PATIENCE_S, Child, environment, started
from autotune.serve.job import Case, Load, ServedModel

#: What starts a command of vLLM, whatever the interpreter's scripts are called.
_COMMAND = ("-m", "vllm.entrypoints.cli.main")

#: Seconds between two looks at whether the server answers.
_PAUSE_S = 0.25

#: The client's flags, and its figures that are read.
FLAGS = (
    *("--backend", "--base-url", "--endpoint", "--model", "--tokenizer", "--dataset-name"),
    *("--random-input-len", "--random-output-len", "--num-prompts", "--max-concurrency"),
    *("--ignore-eos", "--seed", "--save-result", "--save-detailed", "--result-dir"),
    *("--result-filename", "--disable-tqdm", "--lora-modules"),
)
FIGURES = ("median_tpot_ms", "output_throughput", "ttfts", "itls", "completed")


def write_tokenizer(folder: Path, vocabulary: int) -> Path:
    """Write a tokenizer that has a word for every token of a model, for clients that send text.

    Args:
        folder: Is made.
        vocabulary: How many words it has.
    """
    folder.mkdir()
    words = {f"t{number}": number for number in range(vocabulary)}
    split = {"type": "WhitespaceSplit"}
    table: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "eos_token": "t1"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class OverHttp:
    """A server, and the requests that a client sends to it.

    Attributes:
        python: The interpreter that vLLM is installed for.
        served: The model.
        load: The requests.
        has_lora: Whether they have adapters.
        log: Gets what the server and the client print.
        port: The server's.
    """

    python: str
    served: ServedModel
    load: Load
    has_lora: bool
    log: Path
    port: int = field(default_factory=_free_port)

    def told(
        self, *, name: str, more: Sequence[str], env: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        """Serve every case; lines as ``engine_program`` tells them.

        Args:
            name: What messages call the server.
            more: More flags of it.
            env: More variables of its environment.

        Raises:
            WorkerDied: The server or the client ended early.
        """
        begun = time.perf_counter()
        command, env = [*self._server, *more], environment(**env)
        with started(command, name=name, log=self.log, env=env, tells_lines=False) as server:
            _await_health(server, self.port)
            yield {"ready": {"start_s": time.perf_counter() - begun}}
            for case in self.load.cases:
                for number in range(self.load.repeats + 1):
                    yield {"served": {**case.as_dict(), **self._asked(case, number)}}

    @property
    def _adapters(self) -> dict[str, Path]:
        """The adapters by their names, which requests have as their model."""
        some = self.served.adapters if self.has_lora else ()
        return {f"adapter-{number}": path for number, path in enumerate(some, start=1)}

    @property
    def _server(self) -> list[str]:
        flags = self.served.flags(has_lora=self.has_lora)
        if self.served.tokenizer is not None:
            flags += ["--tokenizer", str(self.served.tokenizer)]
        if self.has_lora:
            pairs = (f"{name}={path}" for name, path in self._adapters.items())
            flags += ["--lora-modules", *pairs]
        place = ("--host", "127.0.0.1", "--port", str(self.port))
        return [self.python, *_COMMAND, "serve", self.served.source, *flags, *place]

    def _asked(self, case: Case, seed: int) -> dict[str, Any]:
        """Run the client once; its figures as ``engine_program`` has them."""
        file = self.log.with_suffix(".result.json")
        file.unlink(missing_ok=True)
        place = ("--result-dir", str(file.parent), "--result-filename", file.name)
        with started(
            [*self._client(case, seed), *place],
            name="vLLM's client",
            log=self.log,
            env=environment(),
            tells_lines=False,
        ) as client:
            client.wait()
            try:
                told = json.loads(file.read_text(encoding="utf-8"))
                figures = {name: told[name] for name in FIGURES}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise client.died(f"it wrote no figures: {type(error).__name__}") from error
            if figures["completed"] != case.requests:
                answered = f"{figures['completed']} of {case} were answered"
                raise client.died(answered)
        tokens = case.requests * case.output
        return {
            "step_s": figures["median_tpot_ms"] / 1e3,
            "whole_s": tokens / figures["output_throughput"],
            "output_tokens": tokens,
            "ttft_s": figures["ttfts"],
            "itl_s": [gap for each in figures["itls"] for gap in each],
        }

    def _client(self, case: Case, seed: int) -> list[str]:
        served, names = self.served, self._adapters
        return [
            *(self.python, *_COMMAND, "bench", "serve", "--backend", "openai"),
            *("--base-url", f"http://127.0.0.1:{self.port}", "--endpoint", "/v1/completions"),
            *("--model", served.source, "--tokenizer", str(served.tokenizer or served.source)),
            *("--dataset-name", "random", "--random-input-len", str(case.input)),
            *("--random-output-len", str(case.output), "--num-prompts", str(case.requests)),
            *("--max-concurrency", str(case.requests), "--seed", str(seed)),
            *("--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"),
            *(["--lora-modules", *names] if names else []),
        ]


def _await_health(server: Child, port: int) -> None:
    """Wait until the server answers.

    Raises:
        WorkerDied: It ended, or does not answer in ``PATIENCE_S``.
    """
    due_s = time.monotonic() + PATIENCE_S
    # No proxy: the server is here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if server.has_ended:
            raise server.died(server.ending)
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=5.0):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > due_s:
                raise server.died(f"it did not answer for {PATIENCE_S:g} s") from None
        time.sleep(_PAUSE_S)
