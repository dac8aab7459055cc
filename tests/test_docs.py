"""The documentation: it builds, and what it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.errors import install_hint
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

#: A file or folder of this repository, named as code.
_NAMED = re.compile(r"`((?:autotune|docs|notebooks|studies|tests)/[\w./-]*)`")

#: A link to a file or folder of this repository.
_LINKED = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def extras() -> set[str]:
    """The names of the extras in ``pyproject.toml``."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (table,) = re.findall(r"\[project\.optional-dependencies\]\n(.*?)\n\[", text, flags=re.DOTALL)
    return set(re.findall(r"^([\w-]+) = \[", table, flags=re.MULTILINE))


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    ended = subprocess.run(  # noqa: S603 - our own site
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for page in (ROOT / "docs").glob("*.md"):
        html = (tmp_path / "site" / f"{page.stem}.html").read_text(encoding="utf-8")
        fetched = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]*)"', html)
        assert not fetched, f"{page.name} needs the network"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    linked = [page.parent / name for name in _LINKED.findall(text)]
    named = [ROOT / name for name in _NAMED.findall(text)]
    missing = [path for path in linked + named if not path.exists()]
    assert not missing


def test_the_page_of_installing_lists_every_extra():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)) == extras()


def test_every_hint_in_the_program_names_an_extra_that_there_is():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "autotune").rglob("*.py")]
    hinted = set(re.findall(r"""install_hint\(["']([\w-]+)["']\)""", "\n".join(sources)))
    assert hinted
    assert hinted <= extras()
    assert install_hint("hub").startswith("pip install '/path/to/clone[hub]'")


def test_the_readme_has_one_command_that_runs_the_tests():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count(".venv-dev/bin/pytest") == 1
    assert len(readme.splitlines()) <= 160
