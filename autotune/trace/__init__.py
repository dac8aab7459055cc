"""What runs inside vLLM, and writes down which LoRA kernels it looks up.

vLLM loads ``plugin`` in each of its processes. Nothing heavy is imported here, and nothing of the
rest of autotune: without the environment variable a server must not notice it.
"""

#: Names the file to write; without it nothing is traced.
VARIABLE = "AUTOTUNE_TRACE"

#: The entry point's name in ``vllm.general_plugins``, as ``VLLM_PLUGINS`` lists it.
PLUGIN = "autotune_trace"

#: What the first line of a trace says.
SCHEMA = "autotune-trace/1"
