"""Which modules have LoRA: by the server's ``--lora-target-modules``, or by an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.errors import InputError, shown
from autotune.launch.op import VLLM_RANKS
from autotune.plan.models.modules import Split
from autotune.plan.models.patterns import PatternError, matching

#: What PEFT takes for every linear layer but the logits.
_ALL_LINEAR = "all-linear"


class AdapterError(InputError):
    """An adapter that cannot be used: its file, what it holds, or the model that it is not for."""


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
        rank: The largest of its ranks. The values of ``rank_pattern`` are among them, whether a
            layer matches their keys or not: vLLM refuses the adapter on a server whose rank is
            below one of them (0.33.0, ``validate_legal`` in ``vllm/lora/peft_helper.py``).
        rank_field: The field that gives this rank.
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
    rank_field: str = "r"

    @property
    def server_rank(self) -> int:
        """The ``--max-lora-rank`` to serve it with: the smallest of vLLM's ranks that it fits in.

        Raises:
            AdapterError: Its rank is above vLLM's largest.
        """
        for rank in VLLM_RANKS:
            if self.rank <= rank:
                return rank
        raise AdapterError(
            f"{self.source}: the adapter's rank is above vLLM's largest: got {self.rank_field} "
            f"{shown(self.rank)}; {VLLM_RANKS[-1]} is the most"
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """Every module and parameter that it names; a pattern as it stands."""
        modules = self.target_modules
        return (*((modules,) if isinstance(modules, str) else modules), *self.target_parameters)

    def named(self, places: Sequence[Place]) -> Found:
        """The places that each of ``targets`` names, by PEFT's rules, excluded ones among them.

        Raises:
            AdapterError: A pattern is no valid regular expression, or takes too long to match.
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
            AdapterError: A pattern is no valid regular expression, or takes too long to match.
        """
        excluded = self._matches("exclude_modules", self.exclude_modules, places)
        kept = [_without(place, excluded) for place in places]
        by_module = [path for one in self._modules for path in self._named(one, kept)]
        by_parameter = [
            path for one in self.target_parameters for path in self._with_parameter(one, places)
        ]
        return frozenset([*by_module, *by_parameter])

    def unknown(self, target: str, model: str, places: Sequence[Place]) -> InputError:
        """Why one of ``targets`` names no place.

        Args:
            target: One for which ``named`` has no place.
            model: The model's name.
            places: Every place of the model.
        """
        anywhere = replace(self, layers=None)
        those = anywhere.named(places)[target]
        if those:
            return AdapterError(f"{self.source}: {self._elsewhere(target, model, places, those)}")
        is_module = target in self._modules
        given = "target_modules" if is_module else "target_parameters"
        names = [n for place in places for n in (place.names if is_module else place.parameters)]
        packed = [place.names for place in places if _last(place.path) == target and place.names]
        alias = f"; vLLM's {target} is {_listed(packed[0])} there" if packed else ""
        if is_module and target == self.target_modules:
            alias = "; a text is a pattern for whole paths: write names as a list"
        return AdapterError(
            f"{self.source}: no LoRA layer of {model} is called {shown(target)}, which "
            f"{given} has; an adapter's can be {_listed(names) or 'none'}{alias}"
        )

    def _elsewhere(
        self, target: str, model: str, places: Sequence[Place], those: frozenset[str]
    ) -> str:
        """Which field leaves out the places that a target has in the other decoder layers."""
        found = [place for place in places if place.path in those]
        indices = sorted({place.index for place in found if place.index is not None})
        if not indices:
            return (
                f"layers_to_transform leaves out {shown(target)}, which is in no decoder layer of "
                f"{model}: got {shown(sorted(self.layers or ()))}; leave it out"
            )
        if replace(self, layers_pattern=()).named(places)[target]:
            holders = {
                name.split(f".{place.index}.")[0].rpartition(".")[2]
                for place in found
                for name in place.names or place.parameters
            }
            return (
                f"layers_pattern names nothing that holds the decoder layers of {model}: got "
                f"{shown(list(self.layers_pattern))}; write {' or '.join(sorted(holders))}, or "
                "leave it out"
            )
        return (
            f"layers_to_transform has no decoder layer of {model} with {shown(target)}: got "
            f"{shown(sorted(self.layers or ()))}; give some of {indices[0]} to {indices[-1]}"
        )

    def nothing_left(self, model: str, places: Sequence[Place]) -> str | None:
        """Why no place has LoRA although ``targets`` name some; None if that is not so."""
        if self.with_lora(places) or not replace(self, exclude_modules=()).with_lora(places):
            return None
        excluded = self.exclude_modules
        got = shown(excluded if isinstance(excluded, str) else list(excluded))
        return (
            f"{self.source}: exclude_modules leaves out every layer of {model} that "
            f"target_modules has: got {got}; leave fewer out"
        )

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
            raise AdapterError(f"{self.source}: {field} {error}") from error


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

    def unknown(self, target: str, model: str, places: Sequence[Place]) -> InputError:
        """That one of ``targets`` names no place, and which names there are."""
        names = [name for place in places for name in _known(place)]
        return InputError(
            f"{self.source}: no LoRA layer of {model} is called {shown(target)}; it has "
            f"{_listed(names)}"
        )

    def with_lora(self, places: Sequence[Place]) -> frozenset[str]:
        """The paths of the places that have LoRA."""
        return frozenset().union(*self.named(places).values())


def _is_named(target: str, place: Place) -> bool:
    return target == place.path or target in map(_last, _known(place))


def _known(place: Place) -> tuple[str, ...]:
    """The paths by which ``--lora-target-modules`` may name a place."""
    return (place.path,) if place.split is Split.EXPERTS else (place.path, *place.names)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _listed(paths: Iterable[str]) -> str:
    """The last parts of paths, each once."""
    return ", ".join(dict.fromkeys(map(_last, paths)))
