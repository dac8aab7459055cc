"""What people look at after a run: the page, its figures, and DataFrames.

Knows neither the terminal nor the GPU: it imports neither rich, typer, torch nor Triton.
"""
