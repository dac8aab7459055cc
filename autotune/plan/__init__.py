"""What is asked for: study file, flags and model. Knows nothing of how it is searched."""
