"""How the next configuration is chosen: one module for each strategy."""
