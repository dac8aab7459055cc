"""What runs inside vLLM: it writes down which LoRA kernels are looked up, or launches more of them.

vLLM loads ``plugin`` in each of its processes. Nothing heavy is imported here, and nothing of the
rest of autotune: without an environment variable a server must not notice it.
"""

#: Names the file to write; without it nothing is traced.
VARIABLE = "AUTOTUNE_TRACE"

#: Set to 1, it has a server launch at its start what it would compile while it serves.
WARM = "AUTOTUNE_WARM"

#: The entry point's name in ``vllm.general_plugins``, as ``VLLM_PLUGINS`` lists it.
PLUGIN = "autotune_trace"

#: What the first line of a trace says.
SCHEMA = "autotune-trace/1"
