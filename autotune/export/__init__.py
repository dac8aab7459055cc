"""Writes the chosen configurations where vLLM finds them."""

from autotune.export.lookup import Found, look_up
from autotune.export.nested import read_table
from autotune.export.write import VllmExporter

__all__ = ["Found", "VllmExporter", "look_up", "read_table"]
