"""The flags that choose the shapes, and how a command takes them."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from autotune.cli import parsers
from autotune.cli.parsers import Names, TokenCounts, WholeNumber
from autotune.errors import StudyFileError
from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.plan.file import MODEL_TABLE, TABLES
from autotune.plan.models import MOE_BACKENDS
from autotune.plan.study import StudyPlan
from autotune.plan.traced import read_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFlags:
    """The flags that choose the shapes; None where a flag is not given.

    A field is called as in ``[model]`` or ``[tokens]``, or else as ``StudyPlan.override`` calls it.
    ``takes_shapes`` gives a command all of them.
    """

    study: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY]", help="Study file (TOML); the quick-start study if none."),
    ] = None
    max_loras: Annotated[
        WholeNumber | None,
        typer.Option(parser=parsers.whole(1), metavar="N", help="The server's --max-loras."),
    ] = None
    rank: Annotated[
        WholeNumber | None,
        typer.Option(parser=parsers.whole(1), metavar="N", help="The server's --max-lora-rank."),
    ] = None
    active_loras: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="How many adapters the tokens of a batch are spread over; --max-loras if none.",
        ),
    ] = None
    tokens: Annotated[
        TokenCounts | None,
        typer.Option(
            parser=parsers.tokens,
            metavar="1,16,64|auto",
            help="Batch sizes, in tokens; auto chooses among those that vLLM captures, and is what "
            "a --model or a --trace gets if none.",
        ),
    ] = None
    ops: Annotated[
        list[LoraOp] | None,
        typer.Option(
            "--op",
            parser=parsers.op,
            metavar="OP",
            help="Only this op, such as shrink; may be repeated; all ops if none.",
        ),
    ] = None
    config: Annotated[
        str | None,
        typer.Option("--model", metavar="M", help="A config.json, its folder, or a hub id."),
    ] = None
    ask_vllm: Annotated[
        bool | None,
        typer.Option(
            "--ask-vllm",
            help="Have the installed vLLM say which layers the model has, and not autotune's "
            "table. It is asked about a model that is not in the table in any case.",
        ),
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What autotune trace wrote, in place of a model and its flags."
        ),
    ] = None
    tensor_parallel: Annotated[
        WholeNumber | None,
        typer.Option(
            "--tp",
            parser=parsers.whole(1),
            metavar="N",
            help="The server's --tensor-parallel-size; 1 if none.",
        ),
    ] = None
    fully_sharded: Annotated[
        bool | None,
        typer.Option(
            "--fully-sharded/--no-fully-sharded",
            help="The server's --fully-sharded-loras; not if neither is given.",
        ),
    ] = None
    expert_parallel: Annotated[
        bool | None,
        typer.Option(
            "--expert-parallel/--no-expert-parallel",
            help="The server's --enable-expert-parallel; not if neither is given.",
        ),
    ] = None
    mixed_moe_lora_format: Annotated[
        bool | None, typer.Option(help="The server's --enable-mixed-moe-lora-format.")
    ] = None
    moe_shared_loras: Annotated[
        bool | None, typer.Option(help="The server's --enable-moe-shared-loras.")
    ] = None
    moe_backend: Annotated[
        str | None,
        typer.Option(
            parser=parsers.choice(tuple(MOE_BACKENDS)),
            metavar="|".join(MOE_BACKENDS),
            help="The server's --moe-backend, by which experts in MXFP4 are padded.",
        ),
    ] = None
    data_parallel: Annotated[
        WholeNumber | None,
        typer.Option(
            "--dp",
            parser=parsers.whole(1),
            metavar="N",
            help="The server's --data-parallel-size; 1 if none.",
        ),
    ] = None
    dual_stream: Annotated[
        bool | None,
        typer.Option(
            "--dual-stream/--no-dual-stream",
            help="The server runs with VLLM_LORA_ENABLE_DUAL_STREAM; not if neither is given.",
        ),
    ] = None
    specialize_active_lora: Annotated[
        bool | None, typer.Option(help="The server's flag of this name; not if neither is given.")
    ] = None
    vllm: Annotated[
        str | None,
        typer.Option(
            parser=parsers.release,
            metavar="RELEASE",
            help="The server's release of vLLM; the installed one if none, else the newest known.",
        ),
    ] = None
    target_modules: Annotated[
        Names | None,
        typer.Option(
            parser=parsers.names,
            metavar="q_proj,...",
            help="The server's --lora-target-modules; all layers that can have LoRA if none.",
        ),
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A",
            help="An adapter_config.json, its folder or a hub id: only its layers, at its rank. "
            "May be repeated.",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="The server's flag of this name, for --tokens auto; 8192 if none.",
        ),
    ] = None
    max_num_seqs: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="The server's flag of this name, for --tokens auto; 1024 if none.",
        ),
    ] = None
    speculative_tokens: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="num_speculative_tokens of the server's --speculative-config, for --tokens auto.",
        ),
    ] = None
    cudagraph_capture_sizes: Annotated[
        TokenCounts | None,
        typer.Option(
            parser=parsers.sizes,
            metavar="1,2,4",
            help="The server's flag of this name, for --tokens auto.",
        ),
    ] = None
    max_cudagraph_capture_size: Annotated[
        WholeNumber | None,
        typer.Option(
            parser=parsers.whole(1),
            metavar="N",
            help="The server's flag of this name, for --tokens auto.",
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The values of the flags that were given."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def plan(self, recorded: Sequence[KernelShape] | None = None) -> StudyPlan:
        """The plan that the flags ask for.

        Its shapes are those of the study file, else of the trace, else of the model, else of the
        recording, else of the quick-start study.

        Args:
            recorded: The shapes of a recording. With ``--tokens auto`` no others are asked for.

        Raises:
            InputError: The study file, the trace or a flag cannot be used.
        """
        given = self.given
        self._check_beside_trace(given)
        for name in ("study", "trace"):
            given.pop(name, None)
        if self.adapter:
            given["adapter"] = tuple(self.adapter)
        model = {name: given.pop(name) for name in MODEL_TABLE if name in given}
        limits = {name: given.pop(name) for name in TABLES["tokens"] if name in given}
        plan = self._unflagged(recorded).with_model(model, limits)
        if recorded is not None:
            plan = plan.answered_by(recorded)
        return plan.override(**given)

    def _check_beside_trace(self, given: Iterable[str]) -> None:
        """Refuse flags that a trace has the answer to."""
        others = [name for name in given if name not in _BESIDE_TRACE]
        if self.trace is not None and others:
            names = " and ".join(map(_flag_of, others))
            raise StudyFileError(
                f"--trace says what the server looks up, whatever its flags: got {names}, too; "
                "leave one of them out"
            )

    def _unflagged(self, recorded: Sequence[KernelShape] | None) -> StudyPlan:
        if self.study is not None:
            return StudyPlan.read(self.study)
        if self.trace is not None:
            return StudyPlan.of_trace(read_trace(self.trace))
        if self.config is not None:
            return StudyPlan.of_model(self.config)
        return StudyPlan.quickstart() if recorded is None else StudyPlan.of_shapes(recorded)


#: The flags that may be given with a trace: which of its shapes to take.
_BESIDE_TRACE = ("trace", "tokens", "ops")


def _flag_of(name: str) -> str:
    """What a field's flag is called."""
    called = {
        "study": "a study file",
        "config": "--model",
        "tensor_parallel": "--tp",
        "data_parallel": "--dp",
    }
    return called.get(name, f"--{name.replace('_', '-')}")


def as_typed(flags: ShapeFlags) -> list[str]:
    """The flags as they are typed, each part quoted for a shell where it has to be."""
    typed: list[str] = []
    for name, value in flags.given.items():
        flag = "--op" if name == "ops" else _flag_of(name)
        if name == "study":
            typed.append(shlex.quote(str(value)))
        elif isinstance(value, bool):
            typed.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            texts = (each.value if isinstance(each, LoraOp) else str(each) for each in value)
            typed += [part for text in texts for part in (flag, shlex.quote(text))]
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            typed += [flag, shlex.quote(text)]
    return typed


def takes_shapes(**instead: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of ``ShapeFlags``, in place of its parameter ``flags``.

    Args:
        instead: The types of flags that need another help text in this command.
    """
    hints = get_type_hints(ShapeFlags, include_extras=True) | instead
    names = [each.name for each in fields(ShapeFlags)]
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name]
        )
        for name in names
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_flags(**given: Any) -> None:  # noqa: ANN401 - whatever the command takes
            own = {name: given.pop(name) for name in names}
            command(**given, flags=ShapeFlags(**own))

        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for parameter in signature.parameters.values():
            parameters += flags if parameter.name == "flags" else [parameter]
        # Typer reads both.
        with_flags.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters
        )
        with_flags.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_flags

    return decorate
