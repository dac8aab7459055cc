"""Writes the chosen configurations where vLLM finds them."""

from autotune.export._base import Exporter
from autotune.export.lookup import Found, look_up
from autotune.export.table import read_table
from autotune.export.vllm import VllmExporter

__all__ = ["Exporter", "Found", "VllmExporter", "look_up", "read_table"]
