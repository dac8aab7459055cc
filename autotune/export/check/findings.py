"""The result of checking a folder: what is wrong, and what vLLM finds for every shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autotune.errors import printable
from autotune.launch.op import LookupKey
from autotune.launch.shape import KernelShape

#: Characters of a key that a line shows; six levels of seven digits have 47.
_LONGEST_KEY = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with a folder, or worth knowing.

    Attributes:
        severity: ``error`` where vLLM stops, computes wrong numbers, or never reads the file.
        kind: The kind of finding, such as ``missing_parameter``.
        file: The file's name in the folder; empty for a finding about the folder.
        key: The keys down to the place, such as ``9/3/16/4096/16``; empty for a whole file.
        message: What is wrong, what vLLM does then, and what to do next.
    """

    severity: Literal["error", "warning"]
    kind: str
    file: str = ""
    key: str = ""
    message: str

    @property
    def is_error(self) -> bool:
        """Whether it makes the check fail."""
        return self.severity == "error"

    @property
    def place(self) -> str:
        """The file and the key, such as ``FILE at 9/3``; empty for the folder."""
        key = self.key if len(self.key) <= _LONGEST_KEY else f"{self.key[:_LONGEST_KEY]}…"
        return f"{self.file} at {key}" if key else self.file

    def __str__(self) -> str:
        return printable(": ".join(filter(None, (self.severity, self.place, self.message))))

    def as_dict(self) -> dict[str, str]:
        """The finding as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """What vLLM finds for one shape.

    Attributes:
        gpu: The GPU whose file it is.
        shape: The shape.
        outcome: ``exact``, ``nearest``, ``default`` where vLLM finds no file and takes its own
            configuration, or ``stops`` where it ends with an error.
        path: The key that vLLM really takes; None unless an entry is found.
        entry: The entry under that key.
    """

    gpu: str
    shape: KernelShape
    outcome: Literal["exact", "nearest", "default", "stops"]
    path: LookupKey | None = None
    entry: Mapping[str, Any] | None = None

    @property
    def file(self) -> str:
        """The file that vLLM opens."""
        return self.shape.file_name(self.gpu)

    def as_dict(self) -> dict[str, Any]:
        """The look-up as JSON-ready values."""
        return self.shape.as_dict() | {
            "gpu": self.gpu,
            "file": self.file,
            "key": list(self.shape.lookup_key),
            "outcome": self.outcome,
            "path": None if self.path is None else list(self.path),
            "entry": self.entry,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a check found.

    Attributes:
        folder: The folder, as it was given.
        release: The vLLM release that the folder is checked for.
        findings: Each one once, errors first.
        lookups: One for every GPU and shape that was asked for.
        late: How many kernels a server compiles while it serves; None where no server was given.
    """

    folder: str
    release: str
    findings: tuple[Finding, ...]
    lookups: tuple[LookedUp, ...]
    late: int | None = None

    @property
    def has_errors(self) -> bool:
        """Whether the check has failed."""
        return any(finding.is_error for finding in self.findings)

    @property
    def severities(self) -> Counter[str]:
        """How many findings are errors, and how many warnings."""
        return Counter(finding.severity for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "folder": self.folder,
            "vllm": self.release,
            "errors": self.severities["error"],
            "warnings": self.severities["warning"],
            "late_kernels": self.late,
            "findings": [finding.as_dict() for finding in self.findings],
            "shapes": [lookup.as_dict() for lookup in self.lookups],
        }
