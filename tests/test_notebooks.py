"""The notebooks run from top to bottom, explain themselves, and hold no outputs or functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def read(path: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call] # nbformat's is not typed
    return notebook


def code(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def test_the_notebooks_are_those_that_the_readme_names():
    readme = (FOLDER / "README.md").read_text()
    assert PATHS
    assert all(path.name in readme for path in PATHS)


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_from_top_to_bottom_without_warnings(path):
    notebook = read(path)
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(
        notebook, kernel_name="python3", timeout=int(PATIENCE_S), resources=resources
    ).execute()

    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert [output.text for output in outputs if output.output_type == "stream"] == []
    shown = [output.data for output in outputs]
    assert sum("application/vnd.plotly.v1+json" in each for each in shown) >= 4
    assert any("text/markdown" in each for each in shown)


@each_notebook
def test_a_notebook_is_kept_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@each_notebook
def test_a_notebook_defines_no_functions(path):
    for cell in code(read(path)):
        found = [node for node in ast.walk(ast.parse(cell.source)) if type(node) in _DEFINITIONS]
        assert found == [], cell.source


@each_notebook
def test_a_notebook_begins_with_a_title_and_what_it_asks(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert len(first.source.split("\n\n")) > 1
