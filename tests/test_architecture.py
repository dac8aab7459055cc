"""Imports point down the layers, and each heavy library is imported by one of them only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autotune

ROOT = Path(autotune.__file__).parent

#: From the lowest to the highest; a part may import its own and the layers before it.
LAYERS = (
    ("errors", "__init__"),
    ("ops",),
    ("shapes", "batches"),
    ("layers",),
    ("space",),
    ("bypass",),
    ("environment",),
    ("kernels",),
    ("measure",),
    ("selection", "roofline", "spaces"),
    ("coupling", "events"),
    ("losses",),
    ("refine",),
    ("store",),
    ("search",),
    ("results",),
    ("export", "report"),
    ("models",),
    ("effort",),
    ("workload",),
    ("derived", "studyfile", "estimate"),
    ("plan", "flags"),
    ("rounds",),
    ("runners", "recorder", "tuning", "bench", "checking", "compare_samplers", "dashboard"),
    ("job", "reporting"),
    ("api",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

#: Per library the parts that may import it, at any place in their code.
MAY_IMPORT = {
    "optuna": {"search", "dashboard"},
    "optuna_dashboard": {"dashboard"},
    "torch": {"environment", "kernels", "measure"},
    "triton": {"environment", "kernels", "measure"},
    "sqlalchemy": {"store", "search"},
    "typer": {"cli", "flags"},
    "rich": {"report"},
    "kernel_tuner": {"search"},
    "helion": {"search"},
    "pandas": {"report"},
    "plotly": {"report"},
    "jinja2": {"report"},
}

MODULES = sorted(ROOT.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported, in functions too; what only a type checker imports is not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not _is_for_type_checkers(node):
            yield from imports(node)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def part_of(path: Path) -> str:
    """``store`` for ``autotune/store/schema.py``, ``cli`` for ``autotune/cli/commands.py``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of autotune that a module imports."""
    found = set()
    for name in imports(ast.parse(path.read_text())):
        top, *below = name.split(".")
        if top == "autotune":
            part = below[0] if below else "__init__"
            found.add("__init__" if part.startswith("__version") else part)
    return found


def test_every_part_has_its_layer():
    assert {part_of(path) for path in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_layers(path):
    part = part_of(path)
    beside = set(LAYERS[LEVEL[part]])
    upward = {
        other
        for other in imported_parts(path)
        if other != part
        and (LEVEL[other] > LEVEL[part] or other in beside - {"__init__", "errors"})
    }
    assert not upward, f"autotune.{part} may not import {', '.join(sorted(upward))}"


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_a_library_is_imported_only_where_it_belongs(library):
    importers = {
        part_of(path)
        for path in MODULES
        if library in {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    }
    assert importers <= MAY_IMPORT[library]
    assert importers, f"nothing imports {library}: take it from the list"


def test_the_tree_is_at_most_two_levels_deep():
    assert max(len(path.relative_to(ROOT).parts) for path in MODULES) <= 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.cuda", ["torch.cuda"]),
        ("def f():\n    from autotune.search import tuner", ["autotune.search.tuner"]),
        ("try:\n    import optuna\nexcept ImportError:\n    pass", ["optuna"]),
        ("if TYPE_CHECKING:\n    import torch\nimport json", ["json"]),
    ],
)
def test_imports_are_found_at_every_depth_but_for_those_of_type_checkers(source, expected):
    assert list(imports(ast.parse(source))) == expected
