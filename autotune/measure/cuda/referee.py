"""Comparing finalists: configurations timed side by side, one sample of each in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from autotune.errors import WorkerDied
from autotune.launch.config import KernelConfig
from autotune.launch.shape import KernelShape
from autotune.measure._base import EnoughRule
from autotune.measure.cuda.gpu import blames_device
from autotune.measure.cuda.process import REQUEST_TIMEOUT_S, DeviceProcess
from autotune.measure.cuda.protocol import Failure, Open, Prepare, TakeTurns, Turns
from autotune.measure.measurement import Comparison, DeviceState

#: In one turn every configuration is timed once. After this many turns the caller is asked whether
#: the samples are enough.
TURNS_AT_ONCE = 20

#: Most turns of a comparison.
MOST_TURNS = 200

#: A comparison begins no further turns after this long, seconds. Samples of a launch that takes
#: milliseconds spread little, and all turns of a dozen such finalists would take a minute.
COMPARE_S = 5.0

#: How often a comparison is repeated because the device held its clocks down.
THROTTLED_RETRIES = 2

#: The pause before such a repetition, seconds.
COOL_DOWN_S = 5.0


class Referee:
    """Compares configurations in a process that launches nothing but finalists."""

    def __init__(self, process: DeviceProcess, *, config_timeout_s: float) -> None:
        """Take over a process; it is started by the first comparison, or by ``start``.

        Args:
            process: Owns the device; belongs to the referee from now on.
            config_timeout_s: Limit for launching and checking one configuration, in seconds.
        """
        self._process, self._timeout_s = process, config_timeout_s

    def start(self) -> None:
        """Start the process, so that the first comparison need not wait for it."""
        self._process.start()

    def compare(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        """Compare, and repeat after a pause if the device held its clocks down meanwhile.

        The last comparison counts; its states say whether the clocks were still held down.

        Args:
            shape: The shape.
            configs: Distinct configurations, all of them compiled.
            enough: Asked after every ``TURNS_AT_ONCE`` turns whether to stop.

        Raises:
            WorkerDied: The inputs cannot be made, or the device has failed.
            DeviceLost: The process cannot be started again.
        """
        comparison = self._compare_once(shape, configs, enough)
        for _ in range(THROTTLED_RETRIES):
            if not comparison.is_throttled:
                break
            time.sleep(COOL_DOWN_S)
            comparison = self._compare_once(shape, configs, enough)
        return comparison

    def replace(self) -> None:
        """Go on in a fresh process."""
        self._process.replace()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _compare_once(
        self, shape: KernelShape, configs: Sequence[KernelConfig], enough: EnoughRule
    ) -> Comparison:
        ready = list(configs)
        while ready:
            try:
                ready = self._prepare(shape, ready)
                return self._take_turns(ready, enough) if ready else Comparison(samples_us={})
            except _Fatal as error:
                self._process.replace()
                ready.remove(error.config)
        return Comparison(samples_us={})

    def _prepare(self, shape: KernelShape, configs: Sequence[KernelConfig]) -> list[KernelConfig]:
        """Make configurations ready in the device's process, and return those that run."""
        self._process.ask(Open(shape), REQUEST_TIMEOUT_S)
        ready = []
        for config in configs:
            try:
                failure: Failure | None = self._process.ask(Prepare(config), self._timeout_s)
            except WorkerDied:
                raise _Fatal(config) from None
            if failure is not None and blames_device(failure.reason):
                raise WorkerDied(failure.reason)
            if failure is None:
                ready.append(config)
            elif failure.is_lost:
                raise _Fatal(config)
        return ready

    def _take_turns(self, configs: Sequence[KernelConfig], enough: EnoughRule) -> Comparison:
        order = random.Random(0)  # noqa: S311 - not for secrets: any order that is not fixed
        samples: dict[KernelConfig, tuple[float, ...]] = dict.fromkeys(configs, ())
        states: list[DeviceState] = []
        late = time.monotonic() + COMPARE_S
        for _ in range(MOST_TURNS // TURNS_AT_ONCE):
            orders = tuple(tuple(order.sample(configs, len(configs))) for _ in range(TURNS_AT_ONCE))
            try:
                turns: Turns = self._process.ask(TakeTurns(orders), REQUEST_TIMEOUT_S)
            except WorkerDied as error:
                if blames_device(str(error)):
                    raise
                # Nobody can say which one ended the process. The first is left out, since it is the
                # likeliest to win.
                raise _Fatal(configs[0]) from None
            samples = {config: samples[config] + turns.samples_us[config] for config in configs}
            states += [turns.state] if turns.state else []
            if enough(samples) or time.monotonic() > late:
                break
        return Comparison(samples_us=samples, states=tuple(states))


class _Fatal(Exception):
    """The device's process is gone because of a configuration; never leaves this module."""

    def __init__(self, config: KernelConfig) -> None:
        super().__init__(str(config))
        self.config = config
