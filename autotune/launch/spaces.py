"""Which space a shape is searched in: that of its kernel, less what vLLM does not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.launch.environment import Environment
from autotune.launch.release import NEWEST_RELEASE, parameters_read, reads_only_block_m
from autotune.launch.shape import KernelShape
from autotune.launch.space import SearchSpace
from autotune.measure import Runner


def release_of(environment: Environment) -> str:
    """The vLLM whose behaviour is tuned for: that whose kernels are launched, else the newest."""
    return environment.provider_version if environment.provider == "vllm" else NEWEST_RELEASE


def is_timed_as_pair(shape: KernelShape, environment: Environment) -> bool:
    """Whether what is timed of a MoE shape is vLLM's one kernel for its shrink and its expand."""
    return environment.provider == "vllm" and reads_only_block_m(shape, release_of(environment))


def space_of(runner: Runner, shape: KernelShape, axes: Mapping[str, Sequence[int]]) -> SearchSpace:
    """The space to search: of what vLLM does not read of the shape's entry, the default alone.

    Args:
        runner: Measures.
        shape: The shape.
        axes: The values that the user gave, per parameter.
    """
    space = runner.space(shape, axes)
    read = parameters_read(shape, release_of(runner.environment))
    if read == shape.op.parameters:
        return space
    if not read:
        return SearchSpace(shape, [space.default], default=space.default)
    default = space.default.as_dict()
    kept = {name: space.axes[name] if name in read else (value,) for name, value in default.items()}
    return runner.space(shape, kept)
