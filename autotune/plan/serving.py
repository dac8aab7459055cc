"""At which batch sizes a server launches each kernel: before its first request, and afterwards."""

from __future__ import annotations

from dataclasses import replace

from autotune.launch.op import LoraOp
from autotune.launch.shape import KernelShape
from autotune.launch.warmed import WarmedSizes
from autotune.plan.batches import Batches
from autotune.plan.traced import Trace
from autotune.plan.workload import Workload


def of_batches(
    batches: Batches, workload: Workload, kind: KernelShape, *, gathered_from: int = 1
) -> WarmedSizes:
    """The batch sizes of a kernel in a server with these limits.

    vLLM's second model runner, the usual one since 0.26, launches the largest step with adapters
    (``_dummy_run`` in ``vllm/v1/worker/gpu/model_runner.py``); the first launches only what it
    captures. Both launch logits for as many sequences as there can be.

    Args:
        batches: The limits.
        workload: Says which kernels run over sampled tokens.
        kind: The kernel, ``without_batch``.
        gathered_from: How many servers' batches it gets at once.
    """
    any_sampled = range(1, batches.most_sampled + 1)
    if kind in workload.sampled:
        return WarmedSizes((batches.most_sampled,), (any_sampled,))
    most, graphs = batches.max_num_batched_tokens, batches.captured
    later = [range((graphs[-1] + 1) * gathered_from, most * gathered_from + 1)]
    if kind in workload.also_sampled:
        later.append(any_sampled)
    return WarmedSizes(tuple(n * gathered_from for n in sorted({*graphs, most})), tuple(later))


def captured(
    batches: Batches, workload: Workload, kind: KernelShape, *, gathered_from: int = 1
) -> list[KernelShape]:
    """A shape at every batch size that vLLM captures.

    Logits are computed of the tokens alone that are sampled from: a shape of only logits stops at
    as many as there can be.

    Args:
        batches: The limits.
        workload: Says which kernels run over sampled tokens.
        kind: The kernel.
        gathered_from: How many servers' batches it gets at once.
    """
    is_sampled = kind.without_batch in workload.sampled
    most = batches.most_sampled if is_sampled else batches.max_num_batched_tokens
    sizes = (size for size in batches.captured if size <= most)
    return [replace(kind, num_tokens=size * gathered_from) for size in sizes]


def of_trace(trace: Trace, kind: KernelShape) -> WarmedSizes:
    """The batch sizes of a kernel in a server that was traced.

    Afterwards every size beyond the graphs may come, up to the largest, and whatever did come.

    Args:
        trace: What the server looked up.
        kind: The kernel, ``without_batch``.
    """
    graphs = trace.sizes("capture", kind=kind)
    lowest = min([graphs[-1] + 1 if graphs else 1, *trace.sizes("serving", kind=kind)])
    later = [range(lowest, max(trace.sizes(kind=kind), default=0) + 1)]
    if _is_also_sampled(trace, kind):
        later.append(range(1, trace.limits["max_num_seqs"] + 1))
    return WarmedSizes(tuple(trace.sizes("capture", "start", kind=kind)), tuple(later))


def _is_also_sampled(trace: Trace, kind: KernelShape) -> bool:
    """Whether the logits' shrink is the same kernel: it reads what expands of one slice write."""
    if kind.op is not LoraOp.SHRINK or kind.num_slices > 1 or trace.is_sampled(kind):
        return False
    others = [each for each in trace.kinds if not trace.is_sampled(each)]
    written = {each.slice_sizes for each in others if each.op is LoraOp.EXPAND}
    return len(others) < len(trace.kinds) and (kind.hidden_size,) in written
