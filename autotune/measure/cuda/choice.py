"""Which of this machine's GPUs a run measures with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autotune.errors import InputError
from autotune.measure.cuda.visible import (
    Unknown,
    VisibleDevice,
    seen_text,
    use_by_others,
    visible_devices,
)

#: How many GPUs, ``all``, or which by their numbers; None for the first that is free.
Asked = int | str | tuple[int, ...] | None

Say = Callable[[str], None]


def chosen_devices(asked: Asked, say: Say) -> list[VisibleDevice | None]:
    """The GPUs to measure with, at least one.

    Args:
        asked: Which are asked for.
        say: Called with a line for every GPU that others use, and where that cannot be told.

    Returns:
        The GPUs; None for the one that a process uses if nothing is said.

    Raises:
        InputError: There are not as many, not as many are free, or they have different names.
    """
    there = visible_devices()
    if asked is None:
        first = _first_free(there, say)
        return [None if first is None or first.number == 0 else first]
    if not there:  # AMD's, which the driver here does not know
        raise InputError(f"--gpus {number_asked(asked)}: NVIDIA's driver shows no GPU here")
    chosen = _named(asked, there, say) if isinstance(asked, tuple) else _free(asked, there, say)
    _check_names(asked, chosen)
    return list(chosen)


def number_asked(asked: Asked) -> str:
    """What was asked for, as the flag takes it."""
    if not isinstance(asked, tuple):
        return str(asked)
    return ",".join(map(str, asked)) + ("," if len(asked) == 1 else "")


def _first_free(there: Sequence[VisibleDevice], say: Say) -> VisibleDevice | None:
    """The first GPU that others do not use, or else the first."""
    uses = _uses(there, say, enough=1)
    free = next((each for each in there if each in uses and not uses[each]), None)
    if free is None and there:
        say(f"{there[0].label} is busy with something else ({uses[there[0]]}): figures may be off.")
    elif free is not None:
        _say_left_out(uses, say)
    return free or next(iter(there), None)


def _free(asked: int | str, there: Sequence[VisibleDevice], say: Say) -> Sequence[VisibleDevice]:
    """So many GPUs that others do not use, or all of them."""
    wanted = asked if isinstance(asked, int) else len(there)
    if wanted > len(there):
        raise InputError(f"--gpus {asked}: {seen_text()}; ask for fewer")
    uses = _uses(there, say, enough=wanted)
    free = [each for each in there if each in uses and not uses[each]]
    busy = [each for each in there if uses.get(each)]
    if not free or (isinstance(asked, int) and len(free) < wanted):
        those = "; ".join(f"{each.label}: {uses[each]}" for each in busy)
        named = number_asked(tuple(each.number for each in there[:wanted]))
        raise InputError(
            f"--gpus {asked}: {len(free) or 'none'} of {len(there)} GPUs "
            f"{'is' if len(free) < 2 else 'are'} free, others use {those}; wait, ask for fewer, or "
            f"name those to use all the same: --gpus {named}"
        )
    _say_left_out(uses, say)
    return free[:wanted]


def _named(
    numbers: Sequence[int], there: Sequence[VisibleDevice], say: Say
) -> Sequence[VisibleDevice]:
    """The GPUs of these numbers, also where others use them."""
    missing = [number for number in numbers if number >= len(there)]
    if missing:
        raise InputError(
            f"--gpus {number_asked(tuple(numbers))}: there is no GPU {missing[0]}; {seen_text()}"
        )
    chosen = [there[number] for number in numbers]
    for device, use in _uses(chosen, say, enough=len(chosen) + 1).items():
        if use:
            say(f"{device.label} is busy with something else ({use}): its figures may be off.")
    return chosen


def _uses(devices: Sequence[VisibleDevice], say: Say, *, enough: int) -> dict[VisibleDevice, str]:
    """How others use GPUs, until ``enough`` of them are free; a line is said if nobody knows."""
    uses: dict[VisibleDevice, str] = {}
    for device in devices:
        try:
            uses[device] = use_by_others(device)
        except Unknown as error:
            if len(devices) > 1:
                say(f"Whether others use the GPUs here is not known: NVML does not say ({error}).")
            return dict.fromkeys(devices, "")
        if sum(not use for use in uses.values()) == enough:
            break
    return uses


def _say_left_out(uses: dict[VisibleDevice, str], say: Say) -> None:
    for device, use in uses.items():
        if use:
            named = number_asked((device.number,))
            say(
                f"{device.label} is busy with something else ({use}): it is not used. "
                f"--gpus {named} uses it all the same."
            )


def _check_names(asked: Asked, chosen: Sequence[VisibleDevice]) -> None:
    for other in chosen[1:]:
        if other.name != chosen[0].name:
            raise InputError(
                f"--gpus {number_asked(asked)}: GPU {chosen[0].number} is {chosen[0].name} and GPU "
                f"{other.number} is {other.name}, and each kind has files of its own; give each "
                "kind a run of its own, by the numbers of its GPUs"
            )
