"""Reading the numbers in a model's ``config.json``, by the words of its architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.errors import InputError, shown
from autotune.plan.models.language_model import BY_HAND, Model, language_model_of
from autotune.plan.models.modules import Module

#: Where there are fewer of these heads than GPUs, vLLM copies them: each GPU then has one.
_MAY_BE_COPIED = frozenset(
    {"num_key_value_heads", "num_global_key_value_heads", "multi_query_group_num"}
)

#: Where there is a single one of these groups, every GPU has it.
COPIED_IF_ONE = frozenset({"mamba_n_groups", "n_groups"})

#: No model has a larger size: a larger number is a slip, and is better refused here than later.
_LARGEST = 2**24

#: No model has as many decoder layers: the names of each of them are looked through.
_MOST_LAYERS = 4096

#: Fields with a kind for each decoder layer: as many as there are layers.
_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a config, by the names that formulas use.

    Attributes:
        model: The architecture, and the part of the config that describes its language model.
        has_mxfp4_experts: Whether the checkpoint's experts are in MXFP4.
    """

    model: Model
    has_mxfp4_experts: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Fields:
        """Find the architecture of a config, and the part that describes its language model.

        Raises:
            InputError: The architecture is not in the table, or its entry cannot describe the
                config.
        """
        model = language_model_of(config)
        is_mxfp4 = has_mxfp4_experts(model.values) or has_mxfp4_experts(config)
        return cls(model, has_mxfp4_experts=is_mxfp4)

    @property
    def name(self) -> str:
        """The architecture's name."""
        return self.model.name

    def has(self, module: Module) -> bool:
        """Whether the model has this module at all."""
        values = self.model.values
        if module.if_given and not values.get(module.if_given):
            return False
        return not (module.if_absent and values.get(module.if_absent))

    def number(self, name: str) -> int:
        """A factor of a formula: a whole number as it stands, or a field of the config.

        Raises:
            InputError: The field is absent, or is not a whole number from 1 to ``_LARGEST``.
        """
        if name.isdecimal():
            return int(name)
        value = self.model.values.get(name)
        if value is None and name in self.model.formulas:
            return self.size(self.model.formulas[name])
        if value is None and name in _IMPLIED:
            value = _IMPLIED[name](self)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            got = "nothing" if value is None else shown(value)
            raise InputError(
                f"the config of {self.name} must have {name}, a whole number of at least 1: "
                f"got {got}; {BY_HAND}"
            )
        if name == "num_hidden_layers" and value > _MOST_LAYERS:
            raise InputError(
                f"the config of {self.name} must have {name} of {_MOST_LAYERS} or less: got {value}"
            )
        return value

    def size(self, formula: str, *, ways: int = 1) -> int:
        """The value of a formula, or the part of it that one GPU has.

        Args:
            formula: A sum of products of fields.
            ways: The number of GPUs that divide the first factor of each product.

        Raises:
            InputError: A field is absent, or the GPUs do not divide it.
        """
        total = 0
        for term in formula.split("+"):
            first, *others = (name.strip() for name in term.split("*"))
            total += self._divided(first, ways) * math.prod(map(self.number, others))
        return total

    def _divided(self, name: str, ways: int) -> int:
        value = self.number(name)
        if name in _MAY_BE_COPIED and value < ways and ways % value == 0:
            return 1
        if name in COPIED_IF_ONE and value == 1:
            return 1
        if value % ways:
            raise InputError(
                f"tensor_parallel must divide {name} of {self.name}: got {ways} for {value}"
            )
        return value // ways


def has_mxfp4_experts(config: Mapping[str, Any]) -> bool:
    """Whether a config says that the checkpoint's experts are in MXFP4.

    Raises:
        InputError: What it says of quantization is no object, or its method is no text.
    """
    quantization = config.get("quantization_config")
    if quantization is None:
        return False
    if not isinstance(quantization, dict):
        raise InputError(
            f"the config's quantization_config must be an object: got {shown(quantization)}"
        )
    method = quantization.get("quant_method", "")
    if not isinstance(method, str):
        raise InputError(
            f"the config's quantization_config.quant_method must be a text: got {shown(method)}"
        )
    return method.lower() in ("mxfp4", "gpt_oss_mxfp4")  # as vLLM reads it


def _number_of_kinds(fields: Fields) -> int | None:
    """The number of decoder layers, by a list that has an entry for each."""
    lists = (fields.model.values.get(each) for each in _KINDS)
    return next((len(each) for each in lists if isinstance(each, list) and each), None)


#: Fields that follow from others where a config leaves them out, as in ``transformers``.
_IMPLIED: Mapping[str, Callable[[Fields], int | None]] = {
    "head_dim": lambda fields: fields.number("hidden_size") // fields.number("num_attention_heads"),
    "num_key_value_heads": lambda fields: fields.number("num_attention_heads"),
    "num_hidden_layers": _number_of_kinds,
}
