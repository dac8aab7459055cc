"""Measuring on a GPU: compile processes ahead, one process that owns the GPU."""
