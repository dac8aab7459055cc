"""Samplers against each other on recorded spaces."""
