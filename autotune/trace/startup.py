"""Has a server launch at its start what it would otherwise compile while it serves.

vLLM launches at its start what it captures in CUDA graphs, and a step of
``--max-num-batched-tokens``. A step between the two looks another entry up, or has a number of
tokens that Triton compiles another kernel for (``triton/runtime/jit.py``, 3.6: an integer argument
that is 1, or a multiple of 16). So a few more steps are run, each with a kernel that no other has:
vLLM's own dummy steps with LoRAs, at the point where it runs those of its compile sizes
(``compile_or_warm_up_model`` in ``vllm/v1/worker/gpu_worker.py``, 0.11.1 to 0.33.0). Every worker
reads the same files, and so runs the same steps, as their collectives need.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from autotune.trace.hook import LOOK_UP, holders
from autotune.trace.tensors import facts_of

#: Triton compiles in that a number is a multiple of this.
_DIVISOR = 16

#: Looking up so many batch sizes takes a second.
_MANY = 16_384

#: Triton passes a larger integer as 64 bits.
_LARGEST_32 = 2**31 - 1

#: What vLLM calls the arguments of the look-up, in their order.
_NAMES = (
    *("op_type", "max_loras", "batch", "hidden_size", "rank", "num_slices"),
    *("add_inputs", "moe_intermediate_size"),
)

_DENSE = ("shrink", "expand")

#: vLLM assigns blocks of experts naively if there are this many experts, times adapters, per pair
#: of a token and an expert; and so many values, rank by pairs, are its smallest batches.
_NAIVE_SPARSITY, _SMALL_BATCH_VALUES = 8, 1024

_LOG = logging.getLogger(__name__)

LookUp = Callable[..., Mapping[str, Any]]


class Kernel(NamedTuple):
    """A kernel that a step launches.

    Attributes:
        asked: The arguments of its look-up, but for the batch size.
        times: Rows that it has for each token of the step: several where GPUs gather tokens.
        top_k: Of a MoE kernel, experts that each token goes to; None if not known.
        experts: Of a MoE kernel, experts on all devices; None if not known.
        multiprocessors: Of the GPU; a MoE kernel splits the columns of small batches by them.
    """

    asked: tuple[tuple[str, Any], ...]
    times: int = 1
    top_k: int | None = None
    experts: int | None = None
    multiprocessors: int = 132

    @property
    def is_dense(self) -> bool:
        """Whether it is none of a mixture of experts."""
        return dict(self.asked)["op_type"] in _DENSE

    def needs(self, tokens: int, look_up: LookUp) -> Hashable:
        """Equal for two steps that launch the same compiled kernel."""
        named, batch = dict(self.asked), tokens * self.times
        config = look_up(**named, batch=batch)
        kind: Hashable = _specialised(batch, batch * int(named["rank"]))
        if not self.is_dense:
            kind = self._of_experts(batch, int(_block_m(config)), named)
        return self.asked, tuple(sorted(config.items())), kind

    def _of_experts(self, batch: int, block_m: int, named: Mapping[str, Any]) -> Hashable:
        """What Triton compiles in of the batch's pairs, and of the rows and blocks that they fill.

        Those are vLLM's numbers (``moe_lora_align_block_size`` and ``add_lora_w13`` in
        ``lora/punica_wrapper/punica_gpu.py``, 0.33.0; ``NPID_FACTOR`` and the smallest batches in
        ``fused_moe_lora_op.py``). A kernel that does without one of them is told apart too finely.
        Where the layer is not known every remainder of the batch size counts.
        """
        if self.top_k is None or self.experts is None:
            return batch == 1, batch % _DIVISOR
        pairs, max_loras = batch * self.top_k, int(named["max_loras"])
        if pairs * int(named["rank"]) <= _SMALL_BATCH_VALUES:
            return pairs
        is_naive = pairs * _NAIVE_SPARSITY <= self.experts * max_loras
        rows = pairs * block_m if pairs < self.experts else pairs + self.experts * (block_m - 1)
        blocks = -(-rows // block_m)
        programs = int(named["num_slices"]) * (pairs if is_naive else blocks * (max_loras + 1))
        is_split = programs < int(1.5 * self.multiprocessors)
        parts = min(16, -(-2 * self.multiprocessors // programs)) if is_split else 1
        return is_naive, parts, _specialised(pairs, rows, blocks)


def _specialised(*numbers: int) -> tuple[Hashable, ...]:
    """What Triton compiles in of integer arguments."""
    return tuple((n == 1, n % _DIVISOR == 0, n > _LARGEST_32) for n in numbers)


def _block_m(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - of a file
    """A MoE entry's rows of a block, in one of two spellings; 64 where it has none."""
    return config.get("block_m", config.get("BLOCK_SIZE_M", 64))


def sizes_to_launch(
    kernels: Iterable[Kernel],
    look_up: LookUp,
    *,
    later: Iterable[int],
    launched: Collection[int],
    have: set[Hashable] | None = None,
) -> list[int]:
    """Few batch sizes that between them launch every kernel that steps of ``later`` need.

    Args:
        kernels: What a step launches.
        look_up: vLLM's look-up.
        later: The batch sizes that steps may have while the server serves.
        launched: The batch sizes that its start launches by itself.
        have: What was launched for other kernels; what is launched here is added.
    """
    kernels, have = list(kernels), set() if have is None else have
    have |= {kernel.needs(size, look_up) for kernel in kernels for size in launched}
    chosen = []
    for size in later:
        new = {kernel.needs(size, look_up) for kernel in kernels} - have
        if new:
            chosen.append(size)
            have |= new
    return chosen


def steps_between(first: int, most: int) -> Iterator[int]:
    """The batch sizes from one to another that are looked up: all, or some where they are many.

    Of the larger ones 32 in a row stand for 256: every remainder is among them, and no file has two
    rows so near to each other there.
    """
    return (n for n in range(first, most) if n < _MANY or n % 256 < 2 * _DIVISOR)


def with_more_launches(warm_up: Callable[..., Any]) -> Callable[..., Any]:
    """A worker's warm-up as vLLM does it, then the steps of ``launch_more``; faults are logged."""

    @functools.wraps(warm_up)
    def warmed_up(worker: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as vLLM's
        result = warm_up(worker, *args, **kwargs)
        try:
            launch_more(worker)
        except Exception as error:  # noqa: BLE001 - a server must not fail for this
            _LOG.warning("kernels may be compiled while the server serves: %r", error)
        return result

    return warmed_up


def launch_more(worker: Any) -> None:  # noqa: ANN401 - vLLM's
    """Run the steps that a worker's start lacks, and the logits of so many rows as it lacks.

    Args:
        worker: vLLM's GPU worker, whose model is loaded and whose graphs are not captured yet.
    """
    runner, config = worker.model_runner, worker.vllm_config
    lora = config.lora_config
    captured = _captured(config)
    most = getattr(runner, "max_num_tokens", config.scheduler_config.max_num_batched_tokens)
    first = max(captured, default=0) + 1
    if lora is None or first >= most:
        return
    have: set[Hashable] = set()
    try:
        with _recorded(most) as kernels:
            rows = _run(worker, most, lora.max_loras)
        sizes = sizes_to_launch(
            _with_experts(kernels),
            _plain_look_up(),
            later=steps_between(first, most),
            launched={*captured, most},
            have=have,
        )
        for size in sorted(sizes, reverse=True):
            _run(worker, size, lora.max_loras)
        sampled = _sample_more(worker, rows, have)
        sys.modules["torch"].cuda.synchronize()
        _LOG.info("launched at the start, too: steps of %s tokens, logits of %s", sizes, sampled)
    except BaseException:
        _tidy(runner)
        raise
    finally:
        runner.maybe_remove_all_loras(lora)


def _tidy(runner: Any) -> None:  # noqa: ANN401 - vLLM's
    """Undo what a step that failed has left behind in vLLM's second model runner."""
    connector = getattr(runner, "kv_connector", None)
    if connector is not None and hasattr(connector, "set_disabled"):
        connector.set_disabled(False)
    if getattr(runner, "execute_model_state", None) is not None:
        runner.execute_model_state = None


def _captured(config: Any) -> list[int]:  # noqa: ANN401 - vLLM's
    """The batch sizes that are captured; none where CUDA graphs are off."""
    compilation = config.compilation_config
    mode = getattr(compilation, "cudagraph_mode", None)
    is_off = config.model_config.enforce_eager or getattr(mode, "name", "") == "NONE"
    return [] if is_off else [int(size) for size in compilation.cudagraph_capture_sizes or ()]


def _run(worker: Any, tokens: int, max_loras: int) -> Any:  # noqa: ANN401 - vLLM's
    """A step of dummy tokens with LoRAs; returns the last layer's rows, if this worker has them.

    Up to 0.15.1 ``activate_lora`` has it use them, from 0.22.1 on ``num_active_loras``. The second
    model runner, which takes any arguments, always does.
    """
    step = worker.model_runner._dummy_run  # noqa: SLF001 - what vLLM's worker itself calls
    wanted: dict[str, Any] = {
        "skip_eplb": True,
        "remove_lora": False,
        "activate_lora": True,
        "num_active_loras": max_loras,
        "randomize_inputs": getattr(worker, "randomize_dummy_inputs", False),
    }
    found = step(tokens, **_taken(step, wanted))
    return found[0] if isinstance(found, tuple) else None


def _taken(function: Callable[..., Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function names."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in wanted.items() if name in names}


def _sample_more(worker: Any, rows: Any, have: set[Hashable]) -> list[int]:  # noqa: ANN401 - vLLM's
    """Compute logits of as many rows as serving may, where ``lm_head`` has LoRA.

    vLLM computes them of one row a sampled token, outside of its graphs, so of any number.

    Args:
        worker: As for ``launch_more``.
        rows: The last layer's, of a whole step; None where this worker has none.
        have: What was launched already.

    Returns:
        The numbers of rows.
    """
    config, model = worker.vllm_config, getattr(worker.model_runner, "model", None)
    if not hasattr(model, "compute_logits") or not hasattr(rows, "shape") or not _is_last():
        return []
    drafter = getattr(config, "speculative_config", None)
    each = 1 + int(getattr(drafter, "num_speculative_tokens", 0) or 0)
    most = min(int(config.scheduler_config.max_num_seqs) * each, int(rows.shape[0]))
    with _recorded(most) as kernels:
        _sample(worker, rows[:most])
    sizes = sizes_to_launch(
        kernels, _plain_look_up(), later=range(1, most), launched={most}, have=have
    )
    for size in sorted(sizes, reverse=True):
        _sample(worker, rows[:size])
    return sizes


def _sample(worker: Any, rows: Any) -> None:  # noqa: ANN401 - vLLM's
    """Compute logits of rows that each have a LoRA (as in ``_dummy_sampler_run``)."""
    import numpy as np

    runner, lora = worker.model_runner, worker.vllm_config.lora_config
    ones = np.ones(rows.shape[0], dtype=np.int32)
    wanted = {
        "lora_config": lora,
        "num_scheduled_tokens": ones,
        "num_sampled_tokens": ones,
        "remove_lora": False,
        "activate_lora": True,
        "num_active_loras": lora.max_loras,
    }
    chosen = runner.maybe_dummy_run_with_lora
    with sys.modules["torch"].inference_mode(), chosen(**_taken(chosen, wanted)):
        runner.model.compute_logits(rows)


def _is_last() -> bool:
    """Whether this worker has the model's last layers."""
    state = sys.modules.get("vllm.distributed.parallel_state")
    return state is None or bool(state.get_pp_group().is_last_rank)


@contextlib.contextmanager
def _recorded(tokens: int) -> Iterator[Collection[Kernel]]:
    """The kernels that are looked up meanwhile, in a step of so many tokens."""
    look_up = vars(sys.modules[LOOK_UP.home])[LOOK_UP.name]
    found: dict[Kernel, None] = {}
    multiprocessors = _multiprocessors()

    @functools.wraps(look_up)
    def asked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever vLLM passes
        named = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        batch = named.pop("batch", None)
        if isinstance(batch, int):  # a compiler asks with symbols
            facts, _ = facts_of(str(named["op_type"]), sys._getframe(1))  # noqa: SLF001 - tensors
            times = max(1, batch // tokens)
            asks = tuple(named.items())
            experts = facts.top_k, facts.global_experts
            found[Kernel(asks, times, *experts, multiprocessors)] = None
        return look_up(*args, **kwargs)

    places = list(holders(LOOK_UP.name, look_up))
    for names in places:
        names[LOOK_UP.name] = asked
    try:
        yield found.keys()
    finally:
        for names in places:
            names[LOOK_UP.name] = look_up


def _multiprocessors() -> int:
    """Of this process's GPU; an H100's if it does not say."""
    try:
        return int(sys.modules["torch"].cuda.get_device_properties("cuda").multi_processor_count)
    except Exception:  # noqa: BLE001 - there is none, or it is no CUDA device
        return 132


def _with_experts(kernels: Collection[Kernel]) -> list[Kernel]:
    """The kernels, where those of w2 have the experts of w13's: their callers do not say it."""
    known = {each.experts for each in kernels} - {None}
    experts = known.pop() if len(known) == 1 else None
    return [
        each if each.is_dense or each.experts else each._replace(experts=experts)
        for each in kernels
    ]


def _plain_look_up() -> LookUp:
    """The look-up without what is wrapped around it: a trace, and a cache of 128 answers."""
    look_up: LookUp = inspect.unwrap(vars(sys.modules[LOOK_UP.home])[LOOK_UP.name])
    return look_up
