"""Which modules have LoRA: by the server's ``--lora-target-modules``, or by an adapter."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.errors import InputError
from autotune.launch.op import VLLM_RANKS
from autotune.plan.models.config_json import read_json
from autotune.plan.models.modules import Split

#: What PEFT takes for every linear layer but the logits.
_ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Place:
    """One module of one decoder layer, by its names.

    Attributes:
        path: Its path from the model down, such as ``model.layers.0.self_attn.qkv_proj``.
        parts: The paths by which adapters name it, such as ``model.layers.0.self_attn.q_proj``.
        split: How vLLM divides it.
    """

    path: str
    parts: tuple[str, ...]
    split: Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What an ``adapter_config.json`` says of an adapter's rank and of the modules that it is for.

    Attributes:
        source: Where it was read, as messages name it.
        rank: The largest of its ranks.
        target_modules: Names of modules or ends of their paths; or one pattern for whole paths.
        target_parameters: Names of parameters or ends of their paths, such as fused experts have.
    """

    source: str
    rank: int
    target_modules: tuple[str, ...] | str
    target_parameters: tuple[str, ...] = ()

    @property
    def server_rank(self) -> int:
        """The ``--max-lora-rank`` to serve it with: the smallest of vLLM's ranks that it fits in.

        Raises:
            InputError: Its rank is above vLLM's largest.
        """
        for rank in VLLM_RANKS:
            if self.rank <= rank:
                return rank
        raise InputError(
            f"{self.source}: the adapter's rank is above vLLM's largest: "
            f"got {self.rank}; {VLLM_RANKS[-1]} is the most"
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Every module and parameter that it names; a pattern as it stands."""
        modules = self.target_modules
        return (*((modules,) if isinstance(modules, str) else modules), *self.target_parameters)

    def names(self, target: str, place: Place) -> bool:
        """Whether one of ``targets`` names a module, by PEFT's rules.

        Raises:
            InputError: The target is a pattern that is not a valid regular expression.
        """
        if target != self.target_modules:
            return any(f".{path}".endswith(f".{target}") for path in place.parts)
        if target == _ALL_LINEAR:
            return place.split not in {Split.EMBEDDING, Split.LOGITS}
        try:
            return any(re.fullmatch(target, path) for path in place.parts)
        except re.error as error:
            raise InputError(
                f"{self.source}: target_modules is no valid pattern: got {target!r}: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class ServerTargets:
    """What vLLM is given as ``--lora-target-modules``.

    Attributes:
        targets: Names of modules or of their slices, or whole paths.
    """

    targets: tuple[str, ...]
    source = "--target-modules"  # autotune's name for vLLM's flag

    def names(self, target: str, place: Place) -> bool:
        """Whether one of ``targets`` names a module, by vLLM's rules.

        The slices of a packed module name it. The parts of experts do not: vLLM knows the module
        as ``experts`` only (0.33.0, ``is_in_target_modules`` in ``vllm/lora/utils.py``).
        """
        known = (place.path,) if place.split is Split.EXPERTS else (place.path, *place.parts)
        return target == place.path or target in {path.rpartition(".")[2] for path in known}


def read_adapter(source: str) -> Adapter:
    """Read an adapter's config.

    Args:
        source: An ``adapter_config.json``, a folder with one, or an id on the Hugging Face hub.

    Raises:
        InputError: The file cannot be had or read, or it is not a LoRA adapter's.
    """
    config = read_json(source, "adapter_config.json")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"{source}: not a LoRA adapter: peft_type is {kind!r}")
    return Adapter(
        source=source,
        rank=_largest_rank(source, config),
        target_modules=_target_modules(source, config.get("target_modules")),
        target_parameters=_names(source, "target_parameters", config.get("target_parameters")),
    )


def _largest_rank(source: str, config: Mapping[str, Any]) -> int:
    overrides = config.get("rank_pattern")
    others = overrides.values() if isinstance(overrides, dict) else ()
    return max(_rank(source, value) for value in (config.get("r"), *others))


def _rank(source: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        got = "nothing" if value is None else repr(value)
        raise InputError(f"{source}: r must be a whole number of at least 1: got {got}")
    return value


def _target_modules(source: str, value: object) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else _names(source, "target_modules", value)


def _names(source: str, key: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Collection) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{source}: {key} must be a list of names: got {value!r}")
    return tuple(value)
