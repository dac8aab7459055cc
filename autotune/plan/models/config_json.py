"""Reading the numbers in a model's ``config.json``, by the words of its architecture."""

from __future__ import annotations

import math
import re
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

_MOST = {"num_hidden_layers": _MOST_LAYERS, "num_layers": _MOST_LAYERS}

#: Fields with a kind for each decoder layer: as many as there are layers.
_KINDS = ("layer_types", "layers_block_type", "hybrid_override_pattern", "mlp_layer_types")

#: Heads or groups that others share evenly, by what shares them. vLLM asserts it of attention
#: (``attention.py``) and of Mamba (``ssd_combined.py``, both below ``model_executor/layers/``), and
#: lays linear attention out by it (``qwen_gdn_linear_attn.py``). Where the GPUs divide both, it
#: holds on each GPU, too.
_SHARED_BY = {
    "num_key_value_heads": "num_attention_heads",
    "num_global_key_value_heads": "num_attention_heads",
    "linear_num_key_heads": "linear_num_value_heads",
    "n_groups": "mamba_num_heads",
    "mamba_n_groups": "mamba_n_heads",
}


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
            InputError: The field is absent, or is not a whole number from 1 to what models have.
        """
        if name.isdecimal():
            return int(name)
        value = self.model.values.get(name)
        if value is None and name in self.model.formulas:
            return self.size(self.model.formulas[name])
        if value is None and name in _IMPLIED:
            value = _IMPLIED[name](self)
        most = _MOST.get(name, _LARGEST)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            got = "nothing" if value is None else shown(value)
            raise InputError(
                f"the config of {self.name} must have {self.called(name)}, a whole number from 1 "
                f"to {most}: got {got}; {BY_HAND}"
            )
        return value

    def called(self, name: str) -> str:
        """What the config's file calls a field that may have several names."""
        if name not in self.model.values and name in self.model.formulas:
            return self.model.formulas[name]
        return self.model.written.get(name, name)

    def check_shared(self, module: Module) -> None:
        """Refuse heads that cannot share others evenly: vLLM builds no such module.

        Raises:
            InputError: They cannot, or a field is absent or no size.
        """
        used = {name for size in module.writes for name in re.findall(r"\w+", size)}
        for name, sharer in _SHARED_BY.items():
            if not {name, sharer} <= used:
                continue
            shared, by = self.number(name), self.number(sharer)
            if by % shared:
                raise InputError(
                    f"the config of {self.name} must have {self.called(sharer)}, a multiple of "
                    f"{self.called(name)}: got {by} and {shared}; vLLM builds no such model"
                )

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
                f"tensor_parallel must divide {self.called(name)} of {self.name}: got {ways} for "
                f"{value}"
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
    return next((len(each) for each in lists if isinstance(each, list | str) and each), None)


#: Fields that follow from others where a config leaves them out, as in ``transformers``.
_IMPLIED: Mapping[str, Callable[[Fields], int | None]] = {
    "head_dim": lambda fields: fields.number("hidden_size") // fields.number("num_attention_heads"),
    "num_key_value_heads": lambda fields: fields.number("num_attention_heads"),
    "num_hidden_layers": _number_of_kinds,
}
