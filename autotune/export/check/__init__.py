"""What vLLM finds in a folder, and what is wrong there."""

from autotune.export.check.findings import Finding, LookedUp, Report
from autotune.export.check.surroundings import check, check_exported

__all__ = ["Finding", "LookedUp", "Report", "check", "check_exported"]
