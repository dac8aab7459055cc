"""A Python in which some libraries are not installed."""

from __future__ import annotations

import os
from pathlib import Path

_HIDE = """\
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
HIDDEN = {names!r}


def _found(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)


PathFinder.find_spec = classmethod(_found)
"""


def without(folder: Path, *names: str) -> dict[str, str]:
    """The environment variables of a new Python that finds none of these libraries.

    Args:
        folder: Where to put the file that hides them.
        names: What is imported, such as ``scipy``.
    """
    (folder / "sitecustomize.py").write_text(_HIDE.format(names=names))
    paths = (str(folder), os.environ.get("PYTHONPATH", ""))
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
