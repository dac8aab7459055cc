"""Which modules have LoRA: by the server's ``--lora-target-modules``, or by an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.errors import InputError, printable, shown
from autotune.launch.op import VLLM_RANKS
from autotune.plan.models.json_files import read_json
from autotune.plan.models.modules import Split
from autotune.plan.models.patterns import PatternError, matching

#: What PEFT takes for every linear layer but the logits.
_ALL_LINEAR = "all-linear"

#: The modules that vLLM takes whole from an adapter, for classification.
_SAVED_WHOLE = {"classifier", "score"}

#: Ways to make the first weights that leave the model's own weights as they are.
_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}


@dataclass(frozen=True, slots=True)
class Place:
    """One module of one decoder layer, by its names.

    Attributes:
        path: Its path in vLLM from the model down, such as ``model.layers.0.self_attn.qkv_proj``.
        parts: For every part of it that an adapter names, such as ``q_proj``, the paths by which
            adapters may name it: models of several media have two or three.
        split: How vLLM divides it.
        parameters: The paths of parameters in place of parts, by which adapters may name it, too.
        is_linear: Whether ``transformers`` makes it of linear layers.
        index: The number of its decoder layer; None outside of them.
    """

    path: str
    parts: tuple[tuple[str, ...], ...]
    split: Split
    parameters: tuple[str, ...] = ()
    is_linear: bool = True
    index: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every path by which adapters name a part."""
        return tuple(name for part in self.parts for name in part)


#: For every target the paths of the places that have LoRA by it.
Found = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What an ``adapter_config.json`` says of an adapter's rank and of the modules that it is for.

    Attributes:
        source: Where it was read, as messages name it.
        rank: The largest of its ranks.
        target_modules: Names of modules or ends of their paths; or one pattern for whole paths.
        target_parameters: Names of parameters or ends of their paths, such as fused experts have.
        exclude_modules: Modules that have no LoRA though they are targets; as ``target_modules``.
        layers: The numbers of the decoder layers that have LoRA; None for all. A pattern in
            ``target_modules`` goes before it.
        layers_pattern: What the modules are called that hold the numbered layers; none for any.
    """

    source: str
    rank: int
    target_modules: tuple[str, ...] | str
    target_parameters: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] | str = ()
    layers: frozenset[int] | None = None
    layers_pattern: tuple[str, ...] = ()

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
            f"got {shown(self.rank)}; {VLLM_RANKS[-1]} is the most"
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Every module and parameter that it names; a pattern as it stands."""
        modules = self.target_modules
        return (*((modules,) if isinstance(modules, str) else modules), *self.target_parameters)

    def named(self, places: Sequence[Place]) -> Found:
        """The places that each of ``targets`` names, by PEFT's rules, excluded ones among them.

        Raises:
            InputError: A pattern is no valid regular expression, or takes too long to match.
        """
        modules = {target: frozenset(self._named(target, places)) for target in self._modules}
        parameters = {
            target: frozenset(self._with_parameter(target, places))
            for target in self.target_parameters
        }
        return {**modules, **parameters}

    def with_lora(self, places: Sequence[Place]) -> frozenset[str]:
        """The paths of the places that have LoRA.

        Raises:
            InputError: A pattern is no valid regular expression, or takes too long to match.
        """
        excluded = self._matches("exclude_modules", self.exclude_modules, places)
        kept = [_without(place, excluded) for place in places]
        by_module = [path for one in self._modules for path in self._named(one, kept)]
        by_parameter = [
            path for one in self.target_parameters for path in self._with_parameter(one, places)
        ]
        return frozenset([*by_module, *by_parameter])

    @property
    def _modules(self) -> tuple[str, ...]:
        modules = self.target_modules
        return (modules,) if isinstance(modules, str) else modules

    def _named(self, target: str, places: Sequence[Place]) -> Iterable[str]:
        is_all = self.target_modules == target and target.lower() == _ALL_LINEAR
        if is_all:
            return [
                place.path
                for place in places
                if place.parts and _is_in_all_linear(place) and self._is_in_layers(place, target)
            ]
        is_pattern = target == self.target_modules
        names = self._matches("target_modules", target if is_pattern else (target,), places)
        return [
            place.path
            for place in places
            if not names.isdisjoint(place.names)
            and (is_pattern or self._is_in_layers(place, target))
        ]

    def _with_parameter(self, target: str, places: Sequence[Place]) -> Iterable[str]:
        return [
            place.path
            for place in places
            if any(f".{name}".endswith(f".{target}") for name in place.parameters)
            and self._is_in_layers(place, target)
        ]

    def _is_in_layers(self, place: Place, target: str) -> bool:
        if self.layers is None or target in place.names:
            return True
        if place.index not in self.layers:
            return False
        return not self.layers_pattern or any(
            f".{pattern}.{place.index}." in f".{name}"
            for pattern in self.layers_pattern
            for name in place.names
        )

    def _matches(
        self, field: str, given: tuple[str, ...] | str, places: Sequence[Place]
    ) -> frozenset[str]:
        """The names that a list of ends of paths, or one pattern for whole paths, matches."""
        names = [name for place in places for name in place.names]
        if not isinstance(given, str):
            ends = tuple(f".{end}" for end in given)
            return frozenset(name for name in names if f".{name}".endswith(ends))
        try:
            return matching(given, names)
        except PatternError as error:
            raise InputError(f"{self.source}: {field} {error}") from error


def _is_in_all_linear(place: Place) -> bool:
    return place.is_linear and place.split not in {Split.EMBEDDING, Split.LOGITS}


def _without(place: Place, excluded: frozenset[str]) -> Place:
    """The place without the parts that are excluded by any of their names."""
    kept = tuple(part for part in place.parts if excluded.isdisjoint(part))
    return replace(place, parts=kept)


@dataclass(frozen=True, slots=True)
class ServerTargets:
    """What vLLM is given as ``--lora-target-modules``.

    Attributes:
        targets: Names of modules or of their slices, or whole paths.
    """

    targets: tuple[str, ...]
    source = "--target-modules"  # autotune's name for vLLM's flag

    def named(self, places: Sequence[Place]) -> Found:
        """The places that each target names, by vLLM's rules.

        The slices of a packed module name it. The parts of experts do not: vLLM knows the module
        as ``experts`` only (0.33.0, ``is_in_target_modules`` in ``vllm/lora/utils.py``).
        """
        return {
            target: frozenset(place.path for place in places if _is_named(target, place))
            for target in self.targets
        }

    def with_lora(self, places: Sequence[Place]) -> frozenset[str]:
        """The paths of the places that have LoRA."""
        return frozenset().union(*self.named(places).values())


def _is_named(target: str, place: Place) -> bool:
    known = (place.path,) if place.split is Split.EXPERTS else (place.path, *place.names)
    return target == place.path or target in {path.rpartition(".")[2] for path in known}


def read_adapter(source: str) -> Adapter:
    """Read an adapter's config.

    Args:
        source: An ``adapter_config.json``, a folder with one, or an id on the Hugging Face hub.

    Raises:
        InputError: The file cannot be had or read, it is not a LoRA adapter's, or vLLM refuses
            such an adapter.
    """
    config = read_json(source, "adapter_config.json")
    source = printable(source)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"{source}: not a LoRA adapter: peft_type is {shown(kind)}")
    _check_served(source, config)
    rank = _largest_rank(source, config)
    _check_needed(source, config)
    return Adapter(
        source=source,
        rank=rank,
        target_modules=_names_or_pattern(source, "target_modules", config),
        target_parameters=_names(source, "target_parameters", config),
        exclude_modules=_names_or_pattern(source, "exclude_modules", config),
        layers=_layers(source, config),
        layers_pattern=_patterns(source, config),
    )


# --------------------------------------------------------------------------- what vLLM refuses


def _is_given(value: object) -> bool:
    return bool(value)


def _is_other_bias(value: object) -> bool:
    return value != "none"


def _is_other_init(value: object) -> bool:
    return isinstance(value, str) and value.lower() not in _PLAIN_INITS


#: Features that vLLM refuses an adapter for, with its reason: ``vllm/lora/peft_helper.py`` of
#: 0.33.0.
_REFUSED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "use_dora": (_is_given, "vLLM does not support DoRA"),
    "bias": (_is_other_bias, "vLLM does not support an adapter's bias"),
    "lora_bias": (_is_given, "vLLM does not support LoRA bias"),
    "layer_replication": (_is_given, "vLLM does not support layer_replication"),
    "init_lora_weights": (
        _is_other_init,
        "vLLM does not support weights whose making changed the model's own",
    ),
    "alora_invocation_tokens": (_is_given, "vLLM does not support Activated LoRA"),
    "use_bdlora": (_is_given, "vLLM does not support block-diagonal LoRA"),
    "use_qalora": (_is_given, "vLLM does not support QALoRA"),
    # PEFT saves these as tensors of another name, which vLLM's loader stops at.
    "trainable_token_indices": (_is_given, "vLLM does not support trained tokens"),
}

#: What vLLM must be told of an adapter: the fields of its ``PEFTHelper`` without a default.
_NEEDED = ("lora_alpha", "target_modules")


def _check_served(source: str, config: Mapping[str, Any]) -> None:
    for field, (is_refused, reason) in _REFUSED.items():
        value = config.get(field)
        if field in config and is_refused(value):
            raise InputError(
                f"{source}: {reason}: got {field} {shown(value)}; leave --adapter out, or "
                "convert it"
            )
    saved = [name for name in _names(source, "modules_to_save", config) if name not in _SAVED_WHOLE]
    if saved:
        raise InputError(
            f"{source}: vLLM takes no whole modules from an adapter but classifier and score: got "
            f"modules_to_save {shown(saved)}; leave --adapter out, or convert it"
        )


def _check_needed(source: str, config: Mapping[str, Any]) -> None:
    lacking = [field for field in _NEEDED if field not in config]
    if lacking:
        raise InputError(
            f"{source}: vLLM takes no adapter without {lacking[0]}: got nothing for it; write it "
            "there, as PEFT does"
        )
    alpha = config["lora_alpha"]
    if not isinstance(alpha, int | float):
        raise InputError(f"{source}: lora_alpha must be a number: got {shown(alpha)}")


# --------------------------------------------------------------------------- values of the file


def _largest_rank(source: str, config: Mapping[str, Any]) -> int:
    overrides = config.get("rank_pattern") or {}
    if not isinstance(overrides, dict):
        raise InputError(f"{source}: rank_pattern must be an object: got {shown(overrides)}")
    return max(_rank(source, value) for value in (config.get("r"), *overrides.values()))


def _rank(source: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        got = "nothing" if value is None else shown(value)
        raise InputError(f"{source}: r must be a whole number of at least 1: got {got}")
    return value


def _names_or_pattern(source: str, key: str, config: Mapping[str, Any]) -> tuple[str, ...] | str:
    value = config.get(key)
    return value if isinstance(value, str) and value else _names(source, key, config)


def _names(source: str, key: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    value = config.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise InputError(f"{source}: {key} must be a list of names: got {shown(value)}")
    return tuple(value)


def _layers(source: str, config: Mapping[str, Any]) -> frozenset[int] | None:
    """``layers_to_transform``."""
    value = config.get("layers_to_transform")
    if value is None:
        return None
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in numbers):
        raise InputError(
            f"{source}: layers_to_transform must be a list of whole numbers: got {shown(value)}"
        )
    return frozenset(numbers)


def _patterns(source: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """``layers_pattern``: what the modules with the decoder layers are called; none for any."""
    value = config.get("layers_pattern")
    if isinstance(value, str):
        return (value,) if value else ()
    return _names(source, "layers_pattern", config)
