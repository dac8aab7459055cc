"""What every Runner promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import pytest

from autotune.launch.config import KernelConfig
from autotune.launch.space import SearchSpace
from autotune.measure import Outcome, Runner, never_stop


class RunnerSuite(ABC):
    """The tests of a Runner. A subclass gives the fixture ``runner``, and a space to measure."""

    @pytest.fixture
    @abstractmethod
    def runner(self) -> Iterator[Runner]:
        """A runner that nothing was measured with; closed after the test."""

    @abstractmethod
    def space(self, runner: Runner) -> SearchSpace:
        """A space of at most 30 configurations, of which at least three and the default run."""

    def test_every_configuration_of_a_space_is_measured_once(self, runner: Runner) -> None:
        """Configurations come in any order; what is pending is given again until it is measured."""
        space = self.space(runner)
        pending = dict.fromkeys(space.configs)
        while pending:
            found = runner.measure(space.shape, list(pending)[: runner.lookahead], never_stop)
            del pending[found.config]
            assert found.shape == space.shape
            assert bool(found.samples_us) is (found.outcome is Outcome.OK)
            assert bool(found.reason) is (found.outcome is not Outcome.OK)
        assert space.default in space.configs

    def test_a_configuration_that_is_stopped_is_too_slow_and_keeps_its_samples(
        self, runner: Runner
    ) -> None:
        """The StopRule is asked once here, with the samples of the first round."""
        space = self.space(runner)
        asked: list[tuple[KernelConfig, int]] = []

        def stop(asked_for: KernelConfig, samples_us: Sequence[float]) -> bool:
            asked.append((asked_for, len(samples_us)))
            return True

        for config in space.configs:
            found = runner.measure(space.shape, [config], stop)
            if asked:  # it ran
                break
        assert found.outcome is Outcome.TOO_SLOW
        assert asked == [(found.config, len(found.samples_us))]

    def test_the_shape_that_is_ready_first_is_one_of_those_asked_for(self, runner: Runner) -> None:
        """One of its configurations can be measured then."""
        space = self.space(runner)
        pending = {space.shape: space.configs[:3]}
        ready = runner.first_ready(pending)
        found = runner.measure(ready, pending[ready], never_stop)
        assert found.shape == ready
        assert found.config in pending[ready]

    def test_a_shape_that_was_left_can_be_measured_again(self, runner: Runner) -> None:
        """What was known of it may be forgotten; the outcome is the same."""
        space = self.space(runner)
        first = runner.measure(space.shape, [space.default], never_stop)
        runner.leave(space.shape)
        ready = runner.first_ready({space.shape: [space.default]})
        again = runner.measure(ready, [space.default], never_stop)
        assert (again.config, again.outcome) == (first.config, first.outcome)

    def test_compared_configurations_have_equally_many_samples(self, runner: Runner) -> None:
        """One sample of each in turn, so the i-th of one belongs to the i-th of the others."""
        space = self.space(runner)
        configs = self._working(runner, space)[:3]
        compared = runner.compare(space.shape, configs, lambda _samples: True).samples_us
        assert set(compared) == set(configs)
        assert len({len(samples) for samples in compared.values()}) == 1

    def test_what_is_expected_is_compared_as_ever(self, runner: Runner) -> None:
        """To expect something promises nothing, and changes no figure's meaning."""
        space = self.space(runner)
        configs = self._working(runner, space)[:3]
        runner.expect({space.shape: configs})
        compared = runner.compare(space.shape, configs[1:], lambda _samples: True).samples_us
        assert set(compared) == set(configs[1:])

    def test_its_environment_is_complete(self, runner: Runner) -> None:
        """Every field of the environment says something: figures are compared by it."""
        assert all(runner.environment.as_dict().values())

    def _working(self, runner: Runner, space: SearchSpace) -> list[KernelConfig]:
        found = [runner.measure(space.shape, [each], never_stop) for each in space.configs]
        return [each.config for each in found if each.outcome is Outcome.OK]
