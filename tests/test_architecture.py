"""The plan of the package: which room may import which, and who may import a heavy library."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import autotune

ROOT = Path(autotune.__file__).parent

#: Every room with the rooms that it may import. CONTRIBUTING.md shows the same table.
ROOMS: Mapping[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "files": {"errors"},
    "untrusted": {"errors"},
    "trace": set(),
    "launch": {"errors"},
    "plan": {"launch", "trace", "untrusted", "errors"},
    "measure": {"launch", "files", "untrusted", "version", "errors"},
    "choose": {"measure", "launch", "untrusted", "errors"},
    "store": {"choose", "measure", "launch", "untrusted", "errors"},
    "search": {"store", "choose", "measure", "plan", "launch", "files", "errors"},
    "export": {"choose", "measure", "plan", "launch", "files", "version", "errors"},
    "serve": {"export", "choose", "plan", "launch", "errors"},
    "report": {"search", "store", "choose", "measure", "launch", "files", "version", "errors"},
    "api": {"report", "search", "export", "store", "measure", "plan", "launch", "errors"},
    "cli": {
        *("report", "search", "serve", "export", "store", "choose", "measure", "plan", "launch"),
        *("trace", "files", "version", "errors"),
    },
    "testing": {"search", "store", "choose", "measure", "launch", "errors"},
    "__init__": {"version"},
    "__main__": {"cli"},
}

#: What a report may take from the search: figures about trials, nothing that searches.
REPORT_OF_SEARCH = {"autotune.search.importance", "autotune.search.contest.curves"}

#: Per library the places that may import it, at any depth of their code.
MAY_IMPORT = {
    "optuna": {"search", "testing"},
    "optuna_dashboard": {"search/dashboard"},
    # asking: in a process beside autotune, which vLLM runs in.
    "torch": {"measure/cuda", "measure/kernels", "plan/models/asking"},
    "triton": {"measure/cuda", "measure/kernels"},
    "pydantic": {"untrusted.py", "plan/trace_lines.py", "measure", "choose", "store"},
    "sqlalchemy": {"store", "search"},
    "typer": {"cli"},
    "rich": {"cli"},
    "ray": {"measure/hosts"},
    "kernel_tuner": {"search/contest"},
    "helion": {"search/contest"},
    "threadpoolctl": {"search"},
    "pandas": {"report"},
    "plotly": {"report"},
    "jinja2": {"report"},
}

#: Modules that are named for what they show may repeat a name, and so may these.
MAY_REPEAT = {"__init__", "_base"}
NAMED_FOR_WHAT_THEY_SHOW = ("report/plots/", "cli/")

MOST_LINES = 400
MOST_FLAT = 8

MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}


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


@cache
def imported_by(name: str) -> tuple[str, ...]:
    """What a module imports, as ``autotune.room.module.name``."""
    return tuple(imports(ast.parse(MODULES[name].read_text())))


def room_of(name: str) -> str:
    """``store`` for ``store/schema.py``, ``api`` for ``api.py``."""
    return name.partition("/")[0].removesuffix(".py")


def module_of(imported: str) -> str | None:
    """The path of the module that an import loads last; None where it is none of autotune's."""
    top, *parts = imported.split(".")
    if top != "autotune":
        return None
    for depth in range(len(parts), -1, -1):
        path = "/".join(parts[:depth])
        for candidate in (f"{path}.py", f"{path}/__init__.py".lstrip("/")):
            if candidate in MODULES:
                return candidate
    return None


def arrows() -> dict[str, set[str]]:
    """Per module the modules that it imports."""
    return {
        name: {module for each in imported_by(name) if (module := module_of(each))} - {name}
        for name in MODULES
    }


def test_every_module_is_in_a_room():
    assert {room_of(name) for name in MODULES} <= set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_what_the_table_gives_it(name):
    room = room_of(name)
    others = {room_of(module) for each in imported_by(name) if (module := module_of(each))}
    unknown = others - ROOMS[room] - {room}
    assert not unknown, f"autotune.{room} may not import {', '.join(sorted(unknown))}"


def test_the_rooms_have_no_circle():
    TopologicalSorter(ROOMS).prepare()


def test_no_room_may_import_more_than_it_does():
    used = {
        (room_of(name), room_of(module)) for name, those in arrows().items() for module in those
    }
    allowed = {(room, other) for room, others in ROOMS.items() for other in others}
    assert not allowed - used


def test_modules_have_no_circle():
    TopologicalSorter(arrows()).prepare()


def test_a_report_takes_only_figures_from_the_search():
    taken = {
        module
        for name in MODULES
        if room_of(name) == "report"
        for each in imported_by(name)
        if (module := module_of(each)) and room_of(module) == "search"
    }
    allowed = {
        each.removeprefix("autotune.").replace(".", "/") + ".py" for each in REPORT_OF_SEARCH
    }
    assert taken <= allowed


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_a_library_is_imported_only_where_it_belongs(library):
    importers = {
        name for name in MODULES if library in {each.split(".")[0] for each in imported_by(name)}
    }
    assert importers, f"nothing imports {library}: take it from the list"
    elsewhere = {
        name
        for name in importers
        if not any(name == place or name.startswith(f"{place}/") for place in MAY_IMPORT[library])
    }
    assert not elsewhere


def repeated(names: Iterable[str]) -> list[str]:
    """The module names that come twice, but for those that may."""
    counts = Counter(
        Path(name).stem for name in names if not name.startswith(NAMED_FOR_WHAT_THEY_SHOW)
    )
    return sorted(name for name, n in counts.items() if n > 1 and name not in MAY_REPEAT)


def test_no_word_names_two_modules():
    assert repeated(MODULES) == []


def test_few_modules_lie_outside_the_rooms():
    assert len([name for name in MODULES if "/" not in name]) <= MOST_FLAT


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_long(name):
    assert len(MODULES[name].read_text().splitlines()) <= MOST_LINES


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["search/loop.py", "store/loop.py"], ["loop"]),
        (["search/loop.py", "cli/loop.py", "report/plots/loop.py"], []),
        (["measure/_base.py", "search/samplers/_base.py", "store/__init__.py"], []),
    ],
)
def test_a_second_module_of_one_name_is_found(names, expected):
    assert repeated(names) == expected


def test_the_contributing_guide_shows_every_room_with_what_it_may_import():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \| .* \| ([\w, ]+) \|$", text, re.MULTILINE)
    always = {"errors", "files", "untrusted", "version"}
    shown = {room: set(others.split(", ")) - always for room, others in rows}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"testing"}
    assert set(shown) == rooms
    assert {room: others for room, others in shown.items() if room != "cli"} == {
        room: ROOMS[room] - always for room in rooms if room != "cli"
    }
