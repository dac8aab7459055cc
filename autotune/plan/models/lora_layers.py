"""The LoRA layers that vLLM makes of a model, and the kernels that each launches.

The sums are those of ``vllm/lora/layers/`` and ``vllm/lora/punica_wrapper/punica_gpu.py`` (0.33.0).
A is the matrix that shrinks to the rank, B the one that expands from it:

===========  =================================  ===================================================
module       on one of N GPUs                   with ``--fully-sharded-loras``
===========  =================================  ===================================================
column       B: output / N                      A: rank / N; gathered before B, which has all of it
row          A: input / N                       B: output / N
replicated   whole                              whole
experts      w13 B, w2 A: intermediate / N;     w13 A: rank / N; w2 B: output / N; not together
             with expert parallelism whole,     with expert parallelism
             and experts / N
embedding    whole, no shrink: A is looked up   whole
logits       whole, over the whole vocabulary   whole
===========  =================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import InputError
from autotune.launch.op import VLLM_RANKS, LoraOp
from autotune.plan.models.adapters import Adapter, Place, ServerTargets
from autotune.plan.models.hf_config import Fields
from autotune.plan.models.modules import Module, Split, Where

#: The largest vocabulary that vLLM puts LoRA on the logits of
#: (``vllm/lora/layers/logits_processor.py``, 0.33.0).
LARGEST_VOCABULARY = 258048


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKernel:
    """A kernel that a layer launches: a ``KernelShape`` without the batch and the adapters.

    Attributes:
        op: The kernel.
        hidden_size: ``shrink``: size of the input; MoE ops: the model's; ``expand``: 0.
        slice_sizes: ``expand`` only: output size of each slice.
        num_slices: Number of slices, as vLLM looks it up.
        rank: The rank under which vLLM looks it up, which may be a part of the server's.
        num_experts: MoE ops only: experts on this GPU.
        global_experts: MoE ops only: experts on all GPUs.
        top_k: MoE ops only: experts that each token goes to.
        intermediate_size: MoE ops only: w13: output size of each slice; w2: size of the input.
        fully_sharded: MoE ops only: whether the server runs with ``--fully-sharded-loras``.
        shards: MoE ops only: among how many GPUs those divide the rank of w13 and the output of w2.
    """

    op: LoraOp
    hidden_size: int = 0
    slice_sizes: tuple[int, ...] = ()
    num_slices: int
    rank: int
    num_experts: int = 0
    global_experts: int = 0
    top_k: int = 0
    intermediate_size: int = 0
    fully_sharded: bool = False
    shards: int = 1

    def as_table(self) -> dict[str, Any]:
        """A ``[[shapes]]`` table, but for what the layer and the server add to it."""
        table: dict[str, Any] = {"op": self.op.value}
        if self.op is LoraOp.EXPAND:
            return table | {"slice_sizes": list(self.slice_sizes), "rank": self.rank}
        table |= {"hidden_size": self.hidden_size, "num_slices": self.num_slices}
        if self.op.is_moe:
            sizes = ("num_experts", "top_k", "intermediate_size", "fully_sharded")
            table |= {name: getattr(self, name) for name in sizes}
            table |= {"shards": self.shards} if self.shards > 1 else {}
            if self.global_experts != self.num_experts:
                table["global_experts"] = self.global_experts
        return table | {"rank": self.rank}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraLayer:
    """A module with LoRA, as often as the model has it.

    Attributes:
        name: Its path below a decoder layer, such as ``self_attn.qkv_proj``.
        split: How vLLM divides it. ``LOGITS`` run over the tokens that are sampled from, at most
            one a sequence, all others over the whole batch.
        runs: How often a forward pass runs it.
        shards: Among how many GPUs fully-sharded LoRAs divide what other LoRAs have whole: 1
            where they do not.
        kernels: What it launches, in order.
    """

    name: str
    split: Split
    runs: int
    shards: int
    kernels: tuple[LayerKernel, ...]

    @property
    def tables(self) -> tuple[dict[str, Any], ...]:
        """Its ``[[shapes]]`` tables, without ``num_tokens`` and ``max_loras``."""
        return tuple({"layer": self.name, **kernel.as_table()} for kernel in self.kernels)


def lora_layers(
    config: Mapping[str, Any],
    *,
    rank: int,
    tensor_parallel: int = 1,
    fully_sharded: bool = False,
    expert_parallel: bool = False,
    targets: Collection[str] | Adapter | None = None,
) -> tuple[LoraLayer, ...]:
    """The layers of a model that have LoRA, in the order of a forward pass within a decoder layer.

    Args:
        config: A model's config, as ``read_config`` gives it.
        rank: The server's ``--max-lora-rank``.
        tensor_parallel: The server's ``--tensor-parallel-size``.
        fully_sharded: Whether it runs with ``--fully-sharded-loras``.
        expert_parallel: Whether it runs with ``--enable-expert-parallel``.
        targets: Its ``--lora-target-modules``, or an adapter whose modules it is restricted to.
            With None vLLM launches kernels for every layer that can have LoRA, whatever the
            adapters hold.

    Raises:
        InputError: The architecture is unknown, a field is absent, vLLM would refuse the server's
            flags for this model, or a target is in none of its layers.
    """
    server = _Server(rank, tensor_parallel, fully_sharded, expert_parallel)
    fields = Fields.of(config)
    modules = [module for module in fields.architecture.modules if fields.has(module)]
    places = {module.name: _places(fields, module) for module in modules}
    named = _named(targets)
    if named is not None:
        _check_targets(fields, named, [place for found in places.values() for place in found])
    layers = []
    for module in modules:
        runs = sum(_has_lora(module, place, named) for place in places[module.name])
        if runs and module.computed:
            layers.append(_layer(fields, module, server, runs))
    if not layers:
        got = "none" if named is None else ", ".join(named.targets) or "none"
        raise InputError(
            f"no layer of {fields.name} computes LoRA for these targets: got {got}; name others"
        )
    return tuple(layers)


@dataclass(frozen=True, slots=True)
class _Server:
    """The flags of a server that decide the sizes of a layer."""

    rank: int
    tensor_parallel: int
    fully_sharded: bool
    expert_parallel: bool

    def __post_init__(self) -> None:
        if self.rank not in VLLM_RANKS:
            most = "is above vLLM's largest" if self.rank > VLLM_RANKS[-1] else "is none of vLLM's"
            allowed = ", ".join(map(str, VLLM_RANKS))
            raise InputError(f"rank {most}: got {self.rank}; use one of {allowed}")
        if self.tensor_parallel < 1:
            raise InputError(f"tensor_parallel must be 1 or more: got {self.tensor_parallel}")

    @property
    def shards(self) -> int:
        """Among how many GPUs fully-sharded LoRAs divide what others have whole."""
        return self.tensor_parallel if self.fully_sharded else 1

    @property
    def part_of_rank(self) -> int:
        """The rank of A where it is divided."""
        if self.rank % self.shards:
            raise InputError(
                f"tensor_parallel must divide the rank with fully-sharded LoRAs: "
                f"got {self.tensor_parallel} for rank {self.rank}"
            )
        return self.rank // self.shards


# --------------------------------------------------------------------------- which layers


def _places(fields: Fields, module: Module) -> list[Place]:
    """Where in the model a module is."""
    if module.where is Where.OUTSIDE:
        above = ["model." if module.split is Split.EMBEDDING else ""]
    else:
        above = [f"model.layers.{index}." for index in _decoder_layers(fields, module.where)]
    return [_place(f"{prefix}{module.name}", module) for prefix in above]


def _place(path: str, module: Module) -> Place:
    parent = path if module.split is Split.EXPERTS else path.rpartition(".")[0]
    parts = tuple(f"{parent}.{part}" for part in module.parts)
    return Place(path, parts or (path,), module.split)


def _decoder_layers(fields: Fields, where: Where) -> list[int]:
    indices = list(range(fields.number("num_hidden_layers")))
    is_sparse = fields.architecture.is_sparse
    if where is Where.ALL or is_sparse is None:
        return indices
    wanted = where is Where.SPARSE
    return [index for index in indices if is_sparse(fields.values, index) is wanted]


def _named(targets: Collection[str] | Adapter | None) -> Adapter | ServerTargets | None:
    if targets is None or isinstance(targets, Adapter):
        return targets
    return ServerTargets(tuple(targets))


def _has_lora(module: Module, place: Place, targets: Adapter | ServerTargets | None) -> bool:
    if targets is None:
        return not module.only_if_named
    return any(targets.names(target, place) for target in targets.targets)


def _check_targets(fields: Fields, targets: Adapter | ServerTargets, places: list[Place]) -> None:
    for target in targets.targets:
        if not any(targets.names(target, place) for place in places):
            there = dict.fromkeys(
                name.rpartition(".")[2] for place in places for name in (place.path, *place.parts)
            )
            raise InputError(
                f"{targets.source}: no LoRA layer of {fields.name} is called {target!r}; "
                f"it has {', '.join(there)}"
            )


# --------------------------------------------------------------------------- how large


def _layer(fields: Fields, module: Module, server: _Server, runs: int) -> LoraLayer:
    kernels, shards = _SIZES[module.split](fields, module, server)
    return LoraLayer(
        name=module.name, split=module.split, runs=runs, shards=shards, kernels=kernels
    )


_Sizes = tuple[tuple[LayerKernel, ...], int]


def _column(fields: Fields, module: Module, server: _Server) -> _Sizes:
    written = tuple(fields.size(size, ways=server.tensor_parallel) for size in module.writes)
    a = _shrink(fields.size(module.reads), len(written), server.part_of_rank)
    return (a, _expand(written, server.rank)), server.shards


def _row(fields: Fields, module: Module, server: _Server) -> _Sizes:
    written = tuple(fields.size(size, ways=server.shards) for size in module.writes)
    a = _shrink(fields.size(module.reads, ways=server.tensor_parallel), len(written), server.rank)
    return (a, _expand(written, server.rank)), server.shards


def _whole(fields: Fields, module: Module, server: _Server) -> _Sizes:
    written = tuple(map(fields.size, module.writes))
    a = _shrink(fields.size(module.reads), len(written), server.rank)
    return (a, _expand(written, server.rank)), 1


def _embedding(fields: Fields, module: Module, server: _Server) -> _Sizes:
    return (_expand(tuple(map(fields.size, module.writes)), server.rank),), 1


def _logits(fields: Fields, module: Module, server: _Server) -> _Sizes:
    (written,) = map(fields.size, module.writes)
    if written > LARGEST_VOCABULARY:
        raise InputError(
            f"vLLM has no LoRA on {module.name} for more than {LARGEST_VOCABULARY} words: "
            f"{fields.name} has {written}; leave {module.name} out of the target modules"
        )
    return _whole(fields, module, server)


def _experts(fields: Fields, module: Module, server: _Server) -> _Sizes:
    together = server.expert_parallel and server.tensor_parallel > 1
    if together and server.fully_sharded:
        raise InputError(
            f"vLLM has no fully-sharded LoRAs with expert parallelism: {fields.name} has experts; "
            "leave one of the two out"
        )
    ways = 1 if together else server.tensor_parallel
    written = [fields.size(size, ways=ways) for size in module.writes]
    fields.size(module.reads, ways=server.shards)  # the output of w2, whose B is divided by it
    w13 = LayerKernel(
        op=LoraOp.W13_SHRINK,
        hidden_size=fields.size(module.reads),
        num_slices=len(written),
        # vLLM looks both kernels of w13 up by the rank of its A.
        rank=server.part_of_rank,
        # With expert parallelism the first GPUs have one more where they cannot be alike.
        num_experts=-(-fields.size(module.number) // (server.tensor_parallel // ways)),
        global_experts=fields.size(module.number),
        top_k=fields.size(module.top_k),
        intermediate_size=written[0],
        fully_sharded=server.fully_sharded,
        shards=server.shards,
    )
    # Gate and up are alike in size, and their product is what w2 reads.
    middle = sum(written) // 2
    w2 = replace(w13, num_slices=1, rank=server.rank, intermediate_size=middle)
    kernels = (
        w13,
        replace(w13, op=LoraOp.W13_EXPAND),
        replace(w2, op=LoraOp.W2_SHRINK),
        replace(w2, op=LoraOp.W2_EXPAND),
    )
    return kernels, server.shards


def _shrink(hidden_size: int, num_slices: int, rank: int) -> LayerKernel:
    return LayerKernel(op=LoraOp.SHRINK, hidden_size=hidden_size, num_slices=num_slices, rank=rank)


def _expand(slice_sizes: tuple[int, ...], rank: int) -> LayerKernel:
    return LayerKernel(
        op=LoraOp.EXPAND, slice_sizes=slice_sizes, num_slices=len(slice_sizes), rank=rank
    )


_SIZES: Mapping[Split, Callable[[Fields, Module, _Server], _Sizes]] = {
    Split.COLUMN: _column,
    Split.ROW: _row,
    Split.REPLICATED: _whole,
    Split.EXPERTS: _experts,
    Split.EMBEDDING: _embedding,
    Split.LOGITS: _logits,
}
