"""One launch: op, shape, configuration, space, and what a release of vLLM reads."""
