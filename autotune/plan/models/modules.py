"""The entries of the table of architectures: modules that vLLM puts LoRA on, and their sizes."""

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
    OUTSIDE = "outside"  # no decoder layer: the model has the module once


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module that vLLM puts LoRA on.

    Attributes:
        name: Its path below a decoder layer, as in the checkpoint; below the model where it is
            ``OUTSIDE``.
        split: How it is divided among GPUs.
        reads: Size of its input, a formula; empty for the embedding.
        writes: Output size of each slice, formulas; ``EXPERTS``: of each slice of w13.
        parts: What adapters call its slices, where the slices have names of their own. The names
            stand in place of the module's own name; ``EXPERTS``: below it.
        where: The decoder layers that have it.
        if_given: A field of the config: models without it, or with null or 0, lack the module.
        if_absent: A field of the config: models that give it, other than as null or 0, lack the
            module.
        number: ``EXPERTS`` only: the number of experts, a formula.
        top_k: ``EXPERTS`` only: the number of experts that a token goes to, a formula.
        only_if_named: Whether it has LoRA only where targets name it.
        is_linear: Whether ``transformers`` makes it of linear layers, which PEFT's ``all-linear``
            stands for, and not of parameters.
        computed: False where vLLM loads an adapter's weights but never launches a kernel for them.
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
    is_linear: bool = True


#: From a config and the index of a decoder layer to whether that layer is a mixture of experts.
IsSparse = Callable[[Mapping[str, Any], int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model family.

    Attributes:
        modules: Every module that may have LoRA.
        is_sparse: Which decoder layers are mixtures of experts; None where no module depends on it.
        text_types: For models of several media: the ``model_type`` that the language model in
            their ``text_config`` may have. Such a model's layers lie in ``language_model``.
        tower: For models of several media: names that the modules outside the language model have,
            which vLLM gives no LoRA unless it runs with ``--enable-tower-connector-lora``.
        defaults: Fields that published configs leave out, with the values of ``transformers``.
    """

    modules: tuple[Module, ...]
    is_sparse: IsSparse | None = None
    text_types: tuple[str, ...] = ()
    tower: frozenset[str] = frozenset()
    defaults: Mapping[str, int] = field(default_factory=dict)
