"""What a folder is worth in a real vLLM: engines with it, without it, and without LoRA.

``engine_program`` runs in the interpreter that vLLM is installed for, one process an engine.
``child`` starts it, reads what it says and ends it. ``job`` is what is asked of every engine.
``gains`` compares what they said. Nothing here imports torch or vLLM but the programs.
"""
