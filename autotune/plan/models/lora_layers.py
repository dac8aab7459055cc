"""The LoRA layers that vLLM makes of a model, and the kernels that each launches.

The sizes follow ``vllm/lora/layers/`` and ``vllm/lora/punica_wrapper/punica_gpu.py`` (0.33.0).
A is the matrix that shrinks to the rank, B the one that expands from it:

===========  =================================  ===================================================
module       on one of N GPUs                   with ``--fully-sharded-loras``
===========  =================================  ===================================================
column       B: output / N                      A: rank / N; gathered before B, which has all of it
row          A: input / N                       B: output / N
replicated   whole                              whole
experts      w13 B, w2 A: intermediate / N;     w13 A: rank / N; w2 B: output / N; not together
             with expert parallelism whole,     with expert parallelism
             and experts / N; N counts those
             of data parallelism, too
embedding    whole, no shrink: A is looked up   whole
logits       whole, over the whole vocabulary   whole
===========  =================================  ===================================================

A column of three or more slices that adapters have in one has no LoRA with fully-sharded LoRAs
(``MergedColumnParallelLinearVariableSliceWithLoRA`` in ``column_parallel_linear.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import InputError, ShapeError, printable, shown
from autotune.launch.op import LoraOp
from autotune.launch.release import check_flag
from autotune.launch.shape import KernelShape
from autotune.plan.models.adapters import Adapter, AdapterError, Place, ServerTargets
from autotune.plan.models.config_json import Fields
from autotune.plan.models.modules import Module, Split
from autotune.plan.models.older import check_has_lora
from autotune.plan.models.places import places_of
from autotune.plan.models.server import Padding, Server

#: The largest vocabulary that vLLM puts LoRA on the logits of
#: (``vllm/lora/layers/logits_processor.py``, 0.33.0).
LARGEST_VOCABULARY = 258048


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraLayer:
    """A module with LoRA, as often as the model has it.

    Attributes:
        name: Its path below a decoder layer, such as ``self_attn.qkv_proj``.
        split: How vLLM divides it. ``LOGITS`` run over the tokens that are sampled from, at most
            one a sequence; all other layers run over the whole batch.
        runs: How often a forward pass runs it.
        shapes: The kernels that it launches, in order, for one token.
    """

    name: str
    split: Split
    runs: int
    shapes: tuple[KernelShape, ...]


def lora_layers(
    config: Mapping[str, Any],
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> tuple[LoraLayer, ...]:
    """The layers of a model that have LoRA, in the order of a forward pass within a decoder layer.

    Args:
        config: A model's config, as ``read_config`` gives it.
        server: The flags of the server that runs the model.
        targets: The server's ``--lora-target-modules``, or adapters, whose layers alone are
            wanted. None for every layer that can have LoRA: vLLM launches the kernels of all of
            them, whatever the adapters hold.

    Raises:
        InputError: The architecture is unknown, a field is absent, vLLM would refuse the server's
            flags for this model, or a target is in none of its layers.
    """
    fields = Fields.of(config)
    check_has_lora(fields.model.name, server.release)
    return layers_at(fields, places_in(fields, server), server, targets)


def places_in(fields: Fields, server: Server) -> dict[Module, list[Place]]:
    """Every module of a model that may have LoRA, by the table, with its places.

    Args:
        fields: The model's config.
        server: The flags of the server that runs the model.

    Raises:
        InputError: A field is absent.
    """
    modules = [
        each
        for each in fields.model.architecture.modules
        if fields.has(each) and not (server.fully_sharded and _is_varied(fields, each, server))
    ]
    places = places_of(fields, modules)
    for module in filter(places.get, modules):
        fields.check_shared(module)
    return places


def layers_at(
    fields: Fields,
    places: Mapping[Module, Sequence[Place]],
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> tuple[LoraLayer, ...]:
    """The layers of a model that have LoRA, of those that it has.

    Args:
        fields: The model's config.
        places: Every module of the model, with its places.
        server: As for ``lora_layers``.
        targets: As for ``lora_layers``.

    Raises:
        InputError: As ``lora_layers``.
    """
    found = with_lora(fields, places, server, targets)
    layers = tuple(
        _layer(fields, module, server, len(those))
        for module, those in found.items()
        if those and module.is_launched(server.release)
    )
    if not layers:
        everywhere = [place for those in places.values() for place in those]
        raise _nothing(fields, _named(targets) or [], everywhere)
    return layers


def with_lora(
    fields: Fields,
    places: Mapping[Module, Sequence[Place]],
    server: Server,
    targets: Collection[str] | Sequence[Adapter] | Adapter | None = None,
) -> dict[Module, list[Place]]:
    """The places of a model that have LoRA, of every module; the arguments are as of ``layers_at``.

    Raises:
        InputError: A target is in none of the places.
    """
    named = _named(targets)
    paths: frozenset[str] | None = None
    if named is not None:
        everywhere = [place for found in places.values() for place in found]
        for each in named:
            _check_targets(fields, each, everywhere)
            if isinstance(each, Adapter):
                _check_format(fields, each, server, places)
        paths = frozenset().union(*(each.with_lora(everywhere) for each in named))
    return {
        module: [place for place in found if _has_lora(module, place, paths)]
        for module, found in places.items()
    }


def _nothing(
    fields: Fields, named: Sequence[Adapter | ServerTargets], places: list[Place]
) -> InputError:
    """Why no layer has LoRA."""
    adapters = [each for each in named if isinstance(each, Adapter)]
    for each in adapters:
        if (reason := each.nothing_left(fields.name, places)) is not None:
            return AdapterError(reason)
    got = ", ".join(printable(target) for each in named for target in each.targets) or "none"
    reason = f"no layer of {fields.name} computes LoRA for these targets: got {got}; name others"
    return AdapterError(f"{adapters[0].source}: {reason}") if adapters else InputError(reason)


# --------------------------------------------------------------------------- which layers


def _named(
    targets: Collection[str] | Sequence[Adapter] | Adapter | None,
) -> list[Adapter] | list[ServerTargets] | None:
    if targets is None:
        return None
    if isinstance(targets, Adapter):
        return [targets]
    adapters = [each for each in targets if isinstance(each, Adapter)]
    names = tuple(each for each in targets if isinstance(each, str))
    return adapters or [ServerTargets(names)]


def _has_lora(module: Module, place: Place, with_lora: frozenset[str] | None) -> bool:
    return not module.only_if_named if with_lora is None else place.path in with_lora


def _check_targets(fields: Fields, targets: Adapter | ServerTargets, places: list[Place]) -> None:
    """Refuse targets that name nothing.

    One of several may: PEFT gives such a name of an adapter no weights, and vLLM passes over those
    of a vision tower.
    """
    named = targets.named(places)
    if any(named.values()) and (isinstance(targets, Adapter) or fields.model.wrapper):
        return
    for target, found in named.items():
        if not found:
            raise targets.unknown(target, fields.name, places)


def _check_format(
    fields: Fields, adapter: Adapter, server: Server, places: Mapping[Module, Sequence[Place]]
) -> None:
    """Refuse an adapter of all experts in one, where vLLM has them apart."""
    named = adapter.named([place for found in places.values() for place in found])
    found = frozenset().union(*(named[target] for target in adapter.target_parameters))
    apart = [module for module in places if module.number and len(module.writes) > 1]
    for module in [] if server.mixed_moe_lora_format else apart:
        if not found.isdisjoint(place.path for place in places[module]):
            raise AdapterError(
                f"{adapter.source}: {fields.name} has LoRA on each expert by itself: got "
                f"target_parameters {shown(list(adapter.target_parameters))}; give "
                "--mixed-moe-lora-format if the server has --enable-mixed-moe-lora-format"
            )


# --------------------------------------------------------------------------- how large


def _layer(fields: Fields, module: Module, server: Server, runs: int) -> LoraLayer:
    try:
        shapes = _SHAPES[module.split](fields, module, server)
    except ShapeError as error:
        raise InputError(f"{module.name}: {error}") from error
    return LoraLayer(name=module.name, split=module.split, runs=runs, shapes=shapes)


_Shapes = tuple[KernelShape, ...]


def _is_in_one(fields: Fields, module: Module, server: Server) -> bool:
    """Whether several GPUs have the slices of a module as one."""
    field = module.in_one_if
    return server.tensor_parallel > 1 and bool(field) and fields.number(field) == 1


def _is_varied(fields: Fields, module: Module, server: Server) -> bool:
    """Whether a module has many slices, which adapters have in one."""
    is_column = module.split is Split.COLUMN and len(module.writes) > 2 and not module.parts
    return is_column and not _is_in_one(fields, module, server)


def _column(fields: Fields, module: Module, server: Server) -> _Shapes:
    written = [fields.size(size, ways=server.tensor_parallel) for size in module.writes]
    if _is_in_one(fields, module, server):
        written = [sum(written)]
    return (
        server.shape(
            LoraOp.SHRINK,
            hidden_size=fields.size(module.reads),
            num_slices=len(written),
            rank=server.part_of_rank,
        ),
        server.shape(
            LoraOp.EXPAND, slice_sizes=written, add_inputs=server.adds_to_base(len(written))
        ),
    )


def _row(fields: Fields, module: Module, server: Server) -> _Shapes:
    written = [fields.size(size, ways=server.shards) for size in module.writes]
    read = fields.size(module.reads, ways=server.tensor_parallel)
    return (
        server.shape(LoraOp.SHRINK, hidden_size=read, num_slices=len(written)),
        server.shape(
            LoraOp.EXPAND, slice_sizes=written, add_inputs=server.adds_to_base(len(written))
        ),
    )


def _whole(fields: Fields, module: Module, server: Server) -> _Shapes:
    """Layers that every GPU has whole, which vLLM never runs beside their LoRA.

    The source is ``ReplicatedLinearWithLoRA.apply`` in ``vllm/lora/layers/replicated_linear.py``,
    and ``add_lora_logits`` in ``vllm/lora/punica_wrapper/punica_gpu.py``, 0.22.1 to 0.33.0.
    """
    written = [fields.size(size) for size in module.writes]
    read = fields.size(module.reads)
    return (
        server.shape(LoraOp.SHRINK, hidden_size=read, num_slices=len(written)),
        server.shape(LoraOp.EXPAND, slice_sizes=written),
    )


def _embedding(fields: Fields, module: Module, server: Server) -> _Shapes:
    written = [fields.size(size) for size in module.writes]
    return (server.shape(LoraOp.EXPAND, slice_sizes=written),)


def _logits(fields: Fields, module: Module, server: Server) -> _Shapes:
    (written,) = map(fields.size, module.writes)
    if written > LARGEST_VOCABULARY:
        raise InputError(
            f"vLLM has no LoRA on {module.name} for more than {LARGEST_VOCABULARY} words: "
            f"{fields.name} has {written}; leave {module.name} out of the target modules"
        )
    return _whole(fields, module, server)


def _rounded_up(size: int, multiple: int) -> int:
    """The smallest multiple that is not below a size."""
    return -(-size // multiple) * multiple


def _experts(fields: Fields, module: Module, server: Server) -> _Shapes:
    deals_out = server.expert_parallel and server.expert_gpus > 1
    _check_experts(fields, server, deals_out=deals_out)
    ways = 1 if deals_out else server.expert_gpus
    padding = server.padding() if fields.has_mxfp4_experts else Padding(1, 1)
    # Gate and up are alike in size, and w2 reads their product.
    total = sum(fields.size(size, ways=ways) for size in module.writes)
    middle = _rounded_up(total // 2 if module.is_gated else total, padding.intermediate)
    is_fused = len(module.writes) == 1 and not server.divides_w13
    halves = [2 * middle] if is_fused else [middle, middle]
    written = halves if module.is_gated else [middle]
    hidden_size = _rounded_up(fields.size(module.reads), padding.hidden)
    if hidden_size % server.shards:  # fully-sharded LoRAs divide the output of w2
        fields.size(module.reads, ways=server.shards)
    w13 = server.shape(
        LoraOp.W13_SHRINK,
        hidden_size=hidden_size,
        num_slices=len(written),
        # vLLM looks both kernels of w13 up by the rank of its A.
        rank=server.part_of_rank,
        # Where the GPUs do not divide the experts, the first GPUs have one expert more.
        num_experts=-(-fields.size(module.number) // (server.expert_gpus // ways)),
        global_experts=fields.size(module.number),
        top_k=fields.size(module.top_k),
        intermediate_size=written[0],
        fully_sharded=server.fully_sharded,
        shards=server.shards,
        # vLLM's class for gate and up in one knows of no shared LoRAs.
        shared_loras=server.moe_shared_loras and not (is_fused and module.is_gated),
        # Experts in MXFP4 run nothing beside their LoRA.
        dual_stream=server.has_own_stream and not fields.has_mxfp4_experts,
    )
    w2 = replace(w13, op=LoraOp.W2_SHRINK, num_slices=1, rank=server.rank, intermediate_size=middle)
    return (w13, replace(w13, op=LoraOp.W13_EXPAND), w2, replace(w2, op=LoraOp.W2_EXPAND))


def _check_experts(fields: Fields, server: Server, *, deals_out: bool) -> None:
    """Refuse what vLLM has no LoRA on experts with, and what is not known of it."""
    if deals_out and server.fully_sharded:
        raise InputError(
            f"vLLM has no fully-sharded LoRAs with expert parallelism: {fields.name} has experts; "
            "leave one of the two out"
        )
    if deals_out:
        check_flag("expert_parallel", server.release)
    if server.data_parallel > 1:
        check_flag("data_parallel", server.release)
        if server.fully_sharded:
            raise InputError(
                f"fully-sharded LoRAs on the experts of {fields.name} are not known with "
                f"data_parallel {server.data_parallel}; give what the server asks for, as "
                "--trace FILE"
            )


_SHAPES: Mapping[Split, Callable[[Fields, Module, Server], _Shapes]] = {
    Split.COLUMN: _column,
    Split.ROW: _row,
    Split.REPLICATED: _whole,
    Split.EXPERTS: _experts,
    Split.EMBEDDING: _embedding,
    Split.LOGITS: _logits,
}
