"""Optuna Dashboard on the studies of a database."""
