"""What the table of architectures is made of: modules that vLLM puts LoRA on, with their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Split(str, Enum):
    """How vLLM divides a module among the GPUs of a tensor-parallel group."""

    COLUMN = "column"
    ROW = "row"
    REPLICATED = "replicated"
    EXPERTS = "experts"
    EMBEDDING = "embedding"
    LOGITS = "logits"


class Where(str, Enum):
    """The decoder layers that have a module."""

    ALL = "all"
    DENSE = "dense"
    SPARSE = "sparse"
    OUTSIDE = "outside"  # none of them: it is there once in the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module that vLLM puts LoRA on.

    Attributes:
        name: Its path below a decoder layer, in the words of the checkpoint; below the model where
            it is outside of them.
        split: How it is divided among GPUs.
        reads: Size of its input, a formula.
        writes: Output size of each slice; ``EXPERTS``: of each slice of w13.
        parts: What adapters call its slices, where they have names of their own: beside the module,
            ``EXPERTS``: below it.
        where: The decoder layers that have it.
        if_given: Only models have it whose config gives this field, other than as null or 0.
        if_absent: Only models have it whose config does not.
        number: ``EXPERTS`` only: how many there are, a formula.
        top_k: ``EXPERTS`` only: how many a token goes to, a formula.
        only_if_named: Whether it has LoRA only where it is asked for by name.
        computed: False where vLLM takes an adapter's weights and never launches a kernel for them.
    """

    name: str
    split: Split
    reads: str = ""
    writes: tuple[str, ...]
    parts: tuple[str, ...] = ()
    where: Where = Where.ALL
    if_given: str = ""
    if_absent: str = ""
    number: str = ""
    top_k: str = ""
    only_if_named: bool = False
    computed: bool = True


#: Whether the decoder layer of this index is a mixture of experts.
IsSparse = Callable[[Mapping[str, Any], int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model family.

    Attributes:
        modules: Everything that may have LoRA.
        is_sparse: Which decoder layers are mixtures of experts; None where no module asks.
        defaults: Fields that published configs leave out, as ``transformers`` fills them in.
    """

    modules: tuple[Module, ...]
    is_sparse: IsSparse | None = None
    defaults: Mapping[str, int] = field(default_factory=dict)
