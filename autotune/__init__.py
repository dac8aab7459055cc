"""autotune: finds the fastest launch configurations of vLLM's multi-LoRA Triton kernels."""

__version__ = "0.1.0"
