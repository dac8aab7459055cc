"""What a vLLM release's model classes say of LoRA, read in their source without importing it.

A class is read with its bases: what it does not define itself, the next base does. A module is
known by the name that ``__init__`` gives it and by the class that it is made of, wherever in the
model it lies: ``{"o_proj": {"RowParallelLinear"}}``.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")

MODELS = "vllm.model_executor.models"
_REGISTRY = f"{MODELS}.registry"
_LINEAR = "vllm.model_executor.layers.linear"
_EMBEDDING = "vllm.model_executor.layers.vocab_parallel_embedding"

#: Where fused experts are made; releases call them differently.
_EXPERTS = ("FusedMoE", "SharedFusedMoE", "FusedMoEFactory")


@dataclass(frozen=True)
class Found:
    """A class, and the module that defines it."""

    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name


@dataclass(frozen=True)
class Made:
    """A module that a model makes: ``self.name = kind(...)``."""

    name: str
    kind: str
    call: ast.Call
    owner: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name} = {ast.unparse(self.call)}"


def _kept(
    method: Callable[Concatenate[Release, _Given], _Answer],
) -> Callable[Concatenate[Release, _Given], _Answer]:
    """Have a release keep what its method returns."""

    @functools.wraps(method)
    def answer(self: Release, /, *given: _Given.args, **named: _Given.kwargs) -> _Answer:
        key = (method, *given, *named.items())
        if key not in self.kept:
            self.kept[key] = method(self, *given, **named)
        return self.kept[key]  # type: ignore[no-any-return]

    return answer


class Release:
    """The Python files of one release.

    Args:
        folder: The folder with ``vllm`` in it.
        version: The release's number.
    """

    def __init__(self, folder: Path, version: str) -> None:
        self.kept: dict[tuple[object, ...], Any] = {}
        self._folder = folder
        self.version = version

    @functools.cached_property
    def registered(self) -> dict[str, Found]:
        """Every architecture that has a class of its own in vLLM."""
        found: dict[str, Found] = {}
        for node in self._tree(_REGISTRY).body:
            value = getattr(node, "value", None)
            if isinstance(value, ast.Dict):
                for key, where in zip(value.keys, value.values, strict=True):
                    place = _strings(where)
                    if isinstance(key, ast.Constant) and len(place) == 2:
                        module, name = place
                        module = module if module.startswith("vllm.") else f"{MODELS}.{module}"
                        there = self.find(module, name)
                        if there is not None:
                            found.setdefault(str(key.value), there)
        return found

    @functools.cached_property
    def generating(self) -> list[str]:
        """The architectures that write text: of text, of media, and through ``transformers``."""
        groups = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
        return [
            str(key.value)
            for node in self._tree(_REGISTRY).body
            if _assigned(node) & set(groups)
            for key in getattr(getattr(node, "value", None), "keys", ())
            if isinstance(key, ast.Constant)
        ]

    @functools.cached_property
    def with_lora(self) -> dict[str, Found]:
        """Every architecture whose class supports LoRA."""
        return {name: each for name, each in self.registered.items() if self.supports_lora(each)}

    def supports_lora(self, found: Found) -> bool:
        """Whether a class has ``SupportsLoRA`` among its bases."""
        return any(
            _last(base) == "SupportsLoRA" for each in self.bases(found) for base in each.node.bases
        )

    @_kept
    def bases(self, found: Found) -> list[Found]:
        """A class and all its bases that are vLLM's own, in about the order of Python's."""
        ordered, todo = [found], [found]
        while todo:
            each = todo.pop(0)
            for base in each.node.bases:
                there = self.find(each.module, ast.unparse(base))
                if there is not None and there not in ordered:
                    ordered.append(there)
                    todo.append(there)
        return ordered

    def attribute(self, found: Found, name: str) -> object:
        """The value of a class attribute; None where no base has it, or it is made in code."""
        for each in self.bases(found):
            for node in each.node.body:
                if name in _assigned(node):
                    return self._value(each, node.value)  # type: ignore[attr-defined]
        return None

    def packed(self, found: Found) -> dict[str, list[str]]:
        """``packed_modules_mapping``, with what ``__init__`` may add to it."""
        packed = self.attribute(found, "packed_modules_mapping")
        merged = dict(packed) if isinstance(packed, dict) else {}
        for each in self.bases(found):
            assigned = [node for node in ast.walk(each.node) if isinstance(node, ast.Assign)]
            for node in assigned:
                for target in node.targets:
                    if (
                        isinstance(target, ast.Subscript)
                        and ast.unparse(target.value) == "self.packed_modules_mapping"
                    ):
                        merged[ast.literal_eval(target.slice)] = ast.literal_eval(node.value)
        return merged

    def language_model(self, found: Found) -> list[str]:
        """Where a class of several media says that its language model is."""
        for each in self.bases(found):
            for node in ast.walk(each.node):
                if isinstance(node, ast.keyword) and node.arg == "language_model":
                    value = ast.literal_eval(node.value)
                    return [value] if isinstance(value, str) else list(value)
        return []

    def defines(self, found: Found, name: str) -> bool:
        """Whether a class or a base of it has a method."""
        return any(
            isinstance(node, ast.FunctionDef) and node.name == name
            for each in self.bases(found)
            for node in each.node.body
        )

    def made(self, found: Found) -> list[Made]:
        """Every linear layer, embedding and mixture of experts that a class may make.

        Classes that are named anywhere in it count, too: what is made under a condition is among
        these.
        """
        modules: dict[Made, None] = {}
        seen, todo = {found}, [found]
        while todo:
            each = todo.pop(0)
            for cls in self.bases(each):
                own, named = self._own(cls)
                modules |= dict.fromkeys(own)
                new = [there for there in named if there not in seen]
                seen |= set(new)
                todo += new
        return list(modules)

    @_kept
    def _own(self, cls: Found) -> tuple[list[Made], list[Found]]:
        """What a class makes itself, and the classes that it names."""
        modules: list[Made] = []
        named: dict[Found, None] = {}
        for part in ast.walk(cls.node):
            modules += self._modules_of(cls, part)
            named |= dict.fromkeys(self._named(cls.module, part))
        return modules, list(named)

    def _named(self, module: str, node: ast.AST) -> list[Found]:
        """The classes that a name stands for: itself, or those in a table that it names."""
        name = _name_of(node)
        if name is None:
            return []
        names = self._tables(module).get(name, [name])
        there = [self.find(module, each) for each in names]
        return [each for each in there if each is not None and not _is_layer(each)]

    @_kept
    def _tables(self, module: str) -> dict[str, list[str]]:
        """For every dictionary of a module the names in it, such as classes by kind of layer."""
        return {
            name: [part.id for part in ast.walk(top.value) if isinstance(part, ast.Name)]
            for top in self._tops(module)
            if isinstance(top, ast.Assign | ast.AnnAssign) and isinstance(top.value, ast.Dict)
            for name in _assigned(top)
        }

    @_kept
    def find(self, module: str, name: str) -> Found | None:
        """The class of a name in a module, wherever it is imported from."""
        first, _, rest = name.partition(".")
        there = self._names(module).get(first)
        if isinstance(there, ast.ClassDef):
            return None if rest else Found(module, there)
        if there is None:
            return None
        source, imported = there
        if rest:  # the name of a module
            return self.find(f"{source}.{imported}", rest)
        return None if (source, imported) == (module, name) else self.find(source, imported)

    @_kept
    def _names(self, module: str) -> dict[str, ast.ClassDef | tuple[str, str]]:
        """What the names of a module are: classes, or those of a module under another name."""
        path = self._path(module)
        if not path.is_file():
            return {}
        names: dict[str, ast.ClassDef | tuple[str, str]] = {}
        for node in self._tops(module):
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, node)
            elif isinstance(node, ast.ImportFrom):
                source = _source(module, node, is_package=path.name == "__init__.py")
                if source.startswith("vllm"):
                    for alias in node.names:
                        names.setdefault(alias.asname or alias.name, (source, alias.name))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                for target in _assigned(node) if node.value.id in names else ():
                    names.setdefault(target, names[node.value.id])
        return names

    def kind(self, module: str, name: str) -> str | None:
        """The class of vLLM's layers that a name stands for, by its own name; None for others."""
        if name in _EXPERTS:
            return "experts"
        there = self.find(module, name)
        if there is None:
            return None
        lineage = self.bases(there)
        is_layer = any(
            (each.module, each.name)
            in ((_LINEAR, "LinearBase"), (_EMBEDDING, "VocabParallelEmbedding"))
            for each in lineage
        )
        if any(each.name in _EXPERTS for each in lineage):
            return "experts"
        return there.name if is_layer else None

    def _modules_of(self, cls: Found, node: ast.AST) -> Iterator[Made]:
        targets = _self_names(node)
        value = getattr(node, "value", None)
        if not targets or value is None:
            return
        for call in ast.walk(value):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func)
            kind = self.kind(cls.module, name)
            if kind is not None:
                yield from (Made(target, kind, call, cls.name) for target in targets)
            elif name.startswith("self."):
                for made in self._returned(cls, name.removeprefix("self.")):
                    yield from (Made(target, *made, cls.name) for target in targets)

    def _returned(self, cls: Found, method: str) -> Iterator[tuple[str, ast.Call]]:
        """The layers that a method of a class returns, with their kinds."""
        for node in cls.node.body:
            if not isinstance(node, ast.FunctionDef) or node.name != method:
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Return) and isinstance(part.value, ast.Call):
                    kind = self.kind(cls.module, ast.unparse(part.value.func))
                    if kind is not None:
                        yield kind, part.value

    def _value(self, cls: Found, node: ast.expr | None) -> object:
        if node is None:
            return None
        try:
            return ast.literal_eval(node)
        except ValueError:
            pass
        if isinstance(node, ast.Attribute):
            there = self.find(cls.module, ast.unparse(node.value))
            return None if there is None else self.attribute(there, node.attr)
        if isinstance(node, ast.Dict | ast.BinOp):
            return self._merged(cls, node)
        return None

    def _merged(self, cls: Found, node: ast.Dict | ast.BinOp) -> object:
        merged: dict[object, object] = {}
        if isinstance(node, ast.BinOp):
            for side in (node.left, node.right):
                part = self._value(cls, side)
                merged |= part if isinstance(part, dict) else {}
            return merged
        for key, value in zip(node.keys, node.values, strict=True):
            part = self._value(cls, value)
            if key is None:
                merged |= part if isinstance(part, dict) else {}
            else:
                merged[self._value(cls, key)] = part
        return merged

    def _path(self, module: str) -> Path:
        path = self._folder.joinpath(*module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    @_kept
    def _tree(self, module: str) -> ast.Module:
        return ast.parse(self._path(module).read_text())

    @_kept
    def _tops(self, module: str) -> list[ast.stmt]:
        """The statements of a module, those under a condition among them."""
        return list(_flat(self._tree(module).body))


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _flat(node.body)
            yield from _flat(node.orelse)


def _strings(node: ast.expr) -> tuple[str, ...]:
    parts = node.elts if isinstance(node, ast.Tuple) else []
    return tuple(str(part.value) for part in parts if isinstance(part, ast.Constant))


def _assigned(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _self_names(node: ast.AST) -> list[str]:
    """The names of an assignment to ``self``."""
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    ]


def _name_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return None if node.value.id == "self" else f"{node.value.id}.{node.attr}"
    return None


def _last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _is_layer(there: Found) -> bool:
    """Whether a class is made of no others that count."""
    return there.module in (_LINEAR, _EMBEDDING) or there.module.startswith("vllm.lora")


def _source(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    """The module that is imported from, written out."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def of_kind(made: list[Made]) -> Mapping[str, set[str]]:
    """The kinds of all modules of a name."""
    kinds: dict[str, set[str]] = {}
    for each in made:
        kinds.setdefault(each.name, set()).add(each.kind)
    return kinds
