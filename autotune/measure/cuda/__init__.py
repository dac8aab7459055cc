"""Measuring on a GPU: processes that compile ahead, and processes that own the GPU."""
