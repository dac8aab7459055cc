"""What the table of architectures is made of: modules that vLLM puts LoRA on, and their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from autotune.launch.release import is_since


class Split(str, Enum):
    """How vLLM divides a module among the GPUs of a tensor-parallel group."""

    COLUMN = "column"
    ROW = "row"
    REPLICATED = "replicated"
    EXPERTS = "experts"
    EMBEDDING = "embedding"
    LOGITS = "logits"


#: Where a module is: in every decoder layer, or once in the model. Anything else is a kind of
#: decoder layer, as the architecture's ``kinds`` call them.
EVERY_LAYER = "every layer"
OUTSIDE = "outside"

#: The kinds of decoder layers by their feed-forward block.
DENSE = "dense"
SPARSE = "sparse"

#: From a config and the index of a decoder layer to what kind of layer that is. The config has
#: ``num_hidden_layers``, whether its file says it or not.
LayerKind = Callable[[Mapping[str, Any], int], str]


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
        parameters: What adapters call parameters that checkpoints have in place of such slices,
            below the module.
        where: ``EVERY_LAYER``, ``OUTSIDE``, or the kind of decoder layers that have it.
        if_given: A field of the config: models without it, or with null or 0, lack the module.
        if_absent: A field of the config: models that give it, other than as null or 0, lack the
            module.
        in_one_if: A field of the config: where it is 1, several GPUs have one slice with the sum.
        number: ``EXPERTS`` only: the number of experts, a formula.
        top_k: ``EXPERTS`` only: the number of experts that a token goes to, a formula.
        is_gated: ``EXPERTS`` only: whether w13 has a gate beside what it writes, so that w2 reads
            half of what w13 writes.
        only_if_named: Whether it has LoRA only where targets name it.
        is_linear: Whether ``transformers`` makes it of linear layers, which PEFT's ``all-linear``
            stands for, and not of parameters.
        computed: False where vLLM loads an adapter's weights but never launches a kernel for them.
        unused_since: The first release of which that is so; empty where it is so of none.
    """

    name: str
    split: Split
    reads: str = ""
    writes: tuple[str, ...]
    parts: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    where: str = EVERY_LAYER
    if_given: str = ""
    if_absent: str = ""
    in_one_if: str = ""
    number: str = ""
    top_k: str = ""
    is_gated: bool = True
    only_if_named: bool = False
    computed: bool = True
    unused_since: str = ""
    is_linear: bool = True

    def is_launched(self, release: str) -> bool:
        """Whether a release of vLLM launches kernels for the module's LoRA."""
        return self.computed and not (self.unused_since and is_since(release, self.unused_since))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A language model.

    Attributes:
        modules: Every module that may have LoRA.
        kinds: What the decoder layers differ in, such as dense and sparse; empty where all are
            alike.
        defaults: Fields that published configs leave out: the values of ``transformers``, or the
            formula that they follow from.
        derived: Fields that no config has, by how they follow from those that it has.
        alike: Fields that must have the value of another one: vLLM makes other modules if not.
        above: What vLLM's paths have before ``layers``, and before the embedding.
        spelled: What checkpoints have there, where it is something else.
    """

    modules: tuple[Module, ...]
    kinds: tuple[LayerKind, ...] = ()
    defaults: Mapping[str, int | str] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Mapping[str, Any]], int | None]] = field(default_factory=dict)
    alike: Mapping[str, str] = field(default_factory=dict)
    above: str = "model."
    spelled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A model of several media around a language model.

    vLLM gives the modules outside the language model no LoRA, unless it runs with
    ``--enable-tower-connector-lora``.

    Attributes:
        texts: The language models that may be in it, by the ``model_type`` of their config. The
            first is in those whose config does not say.
        at: The field with the config of the language model; the first of several that is there.
            Without any, the fields stand in the config itself.
        defaults: As of ``Architecture``; these go first.
        above: What vLLM's paths have before ``layers``.
        above_logits: What vLLM's paths have before ``lm_head``.
        spelled: What checkpoints have before ``layers``: vLLM loads adapters by all of these
            (``hf_to_vllm_mapper`` of the model's class).
    """

    texts: Mapping[str, Architecture]
    at: tuple[str, ...] = ("text_config",)
    defaults: Mapping[str, int | str] = field(default_factory=dict)
    above: str = "language_model.model."
    above_logits: str = "language_model."
    spelled: tuple[str, ...] = ("model.language_model.", "language_model.model.", "model.")
