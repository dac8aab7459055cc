"""What vLLM finds in a folder, and what is wrong there."""

from autotune.export.check.asked import AskedBatch, by_batch
from autotune.export.check.findings import Finding, LookedUp, Report
from autotune.export.check.surroundings import check, check_exported

__all__ = [
    "AskedBatch",
    "Finding",
    "LookedUp",
    "Report",
    "by_batch",
    "check",
    "check_exported",
]
