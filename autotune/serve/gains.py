"""What the folder gains: the engines with it and without it, case by case."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from autotune.serve.job import Case, Load

#: Differences below this share are noise, however alike the servers' times are by chance.
_LEAST_NOISE = 0.01

#: Where LoRA adds less to a step than this share of what its kernels take, the GPU is not what is
#: waited for.
_LEAST_ADDED = 0.80

#: Where the measured saving parts from the predicted one by more than this share, it is marked.
_MOST_APART = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of requests on one engine, seconds.

    Attributes:
        step_s: The time of a step while all requests run.
        tokens_per_s: Output tokens a second, of the whole round.
        ttft_s: Of each request, the time to its first token.
        itl_s: The times between tokens, of all requests.
    """

    step_s: float
    tokens_per_s: float
    ttft_s: Sequence[float]
    itl_s: Sequence[float]


@dataclass(slots=True, kw_only=True)
class Engine:
    """What one engine did.

    Attributes:
        name: ``default``, ``folder``, ``default again`` or ``no LoRA``.
        start_s: How long it took to start.
        rounds: By case, its rounds but for the first.
        compiled: By kernel, how often one was compiled while requests were served; None where this
            release does not tell.
    """

    name: str
    start_s: float = 0.0
    rounds: dict[Case, list[Round]] = field(default_factory=dict)
    compiled: dict[str, int] | None = None

    def at(self, case: Case, repeats: int) -> Figures | None:
        """Its figures of a case; None where it was timed fewer times."""
        rounds = self.rounds.get(case, [])
        return Figures.of(rounds) if len(rounds) >= repeats else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """An engine's figures of one case, of all its rounds.

    Attributes:
        step_ms: The time of a step, median; ``step_low_ms`` and ``step_high_ms`` are its ends.
        tokens_per_s: Output tokens a second, median.
        ttft_ms: The time to the first token, median; ``ttft_p99_ms`` at the 99th percentile.
        itl_ms: The time between tokens, median; ``itl_p99_ms`` at the 99th percentile.
    """

    step_ms: float
    step_low_ms: float
    step_high_ms: float
    tokens_per_s: float
    ttft_ms: float
    ttft_p99_ms: float
    itl_ms: float
    itl_p99_ms: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Figures:
        """The figures of some rounds."""
        steps = [1e3 * each.step_s for each in rounds]
        first = [1e3 * time for each in rounds for time in each.ttft_s]
        between = [1e3 * time for each in rounds for time in each.itl_s]
        return cls(
            step_ms=statistics.median(steps),
            step_low_ms=min(steps),
            step_high_ms=max(steps),
            tokens_per_s=statistics.median(each.tokens_per_s for each in rounds),
            ttft_ms=statistics.median(first),
            ttft_p99_ms=percentile(first, 99),
            itl_ms=statistics.median(between),
            itl_p99_ms=percentile(between, 99),
        )

    def as_dict(self) -> dict[str, float]:
        """The figures as JSON-ready values."""
        return {name: round(getattr(self, name), 4) for name in self.__slots__}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` percent of the values are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]


class Predicted(NamedTuple):
    """What the times of LoRA's kernels say of a step.

    Attributes:
        kernels_ms: What they add to a step by the defaults; None where they run beside others.
        saved_ms: How much less they take with the folder.
    """

    kernels_ms: float | None
    saved_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case: the folder beside the default.

    Attributes:
        case: The requests.
        default: Of the first engine with vLLM's defaults.
        again: Of the second one, which ran after the folder's.
        folder: Of the engine with the folder.
        folder_again: Of a second one, which runs only where the first seems slower.
        no_lora: Of the engine without LoRA; None where there was none.
        predicted: What its kernels' times say; None where unknown.
    """

    case: Case
    default: Figures
    again: Figures
    folder: Figures
    folder_again: Figures | None = None
    no_lora: Figures | None = None
    predicted: Predicted | None = None

    @property
    def default_ms(self) -> float:
        """A step by vLLM's defaults: the mean of both engines."""
        return (self.default.step_ms + self.again.step_ms) / 2

    @property
    def folder_ms(self) -> float:
        """A step with the folder: the mean where two engines had it."""
        return statistics.mean(each.step_ms for each in self._tuned)

    @property
    def _tuned(self) -> list[Figures]:
        return [self.folder, *([self.folder_again] if self.folder_again else [])]

    @property
    def noise_ms(self) -> float:
        """How far two times of a step may be apart by chance.

        It is how far two engines that are alike are apart, or half of the range of one engine's
        rounds, or 1 % of a step: the most of these.
        """
        engines = (self.default, self.again, *self._tuned)
        ranges = (each.step_high_ms - each.step_low_ms for each in engines)
        drifts = (
            abs(self.default.step_ms - self.again.step_ms),
            abs(self._tuned[0].step_ms - self._tuned[-1].step_ms),
        )
        return max(*drifts, max(ranges) / 2, _LEAST_NOISE * self.default_ms)

    @property
    def saved_ms(self) -> float:
        """What the folder saves of a step."""
        return self.default_ms - self.folder_ms

    @property
    def gains(self) -> tuple[float, float]:
        """The tokens a second that the folder gains over the faster and the slower default."""
        both = sorted((self.default.step_ms, self.again.step_ms))
        low, high = (each / self.folder_ms - 1 for each in both)
        return low, high

    @property
    def verdict(self) -> str:
        """``faster``, ``same`` or ``slower`` than the default, beyond noise."""
        low, high = sorted((self.default.step_ms, self.again.step_ms))
        steps = [each.step_ms for each in self._tuned]
        if max(steps) < low - self.noise_ms:
            return "faster"
        return "slower" if min(steps) > high + self.noise_ms else "same"

    @property
    def is_as_predicted(self) -> bool | None:
        """Whether the server saves what its kernels do, within a tenth; None where unknown."""
        if self.predicted is None:
            return None
        expected_ms = self.predicted.saved_ms
        return abs(self.saved_ms - expected_ms) <= _MOST_APART * abs(expected_ms)

    @property
    def waits_for_processor(self) -> bool:
        """Whether LoRA adds plainly less to a step than its kernels take: the GPU has time left."""
        if self.predicted is None or self.predicted.kernels_ms is None or self.no_lora is None:
            return False
        added_ms = self.default_ms - self.no_lora.step_ms
        return added_ms < _LEAST_ADDED * self.predicted.kernels_ms

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        return {
            **self.case.as_dict(),
            "default": self.default.as_dict(),
            "default_again": self.again.as_dict(),
            "folder": self.folder.as_dict(),
            "folder_again": self.folder_again and self.folder_again.as_dict(),
            "no_lora": self.no_lora and self.no_lora.as_dict(),
            "saved_ms": round(self.saved_ms, 4),
            "noise_ms": round(self.noise_ms, 4),
            "gain_low": round(self.gains[0], 4),
            "gain_high": round(self.gains[1], 4),
            "verdict": self.verdict,
            "kernels_ms": self.predicted and self.predicted.kernels_ms,
            "predicted_ms": self.predicted and self.predicted.saved_ms,
            "is_as_predicted": self.is_as_predicted,
            "waits_for_processor": self.waits_for_processor,
        }


def rows_of(
    engines: Mapping[str, Engine], load: Load, predicted: Mapping[int, Predicted]
) -> list[Row]:
    """A row for each case that the folder's engine and both by the defaults were timed at.

    Args:
        engines: By name; those that were not run are missing.
        load: The cases, and how often each is timed.
        predicted: By number of requests, what the kernels' times say of a step.
    """
    rows = []
    for case in load.cases:
        at = {name: engine.at(case, load.repeats) for name, engine in engines.items()}
        default, folder, again = (at.get(name) for name in ("default", "folder", "default again"))
        if default and folder and again:
            row = Row(
                case=case,
                default=default,
                again=again,
                folder=folder,
                folder_again=at.get("folder again"),
                no_lora=at.get("no LoRA"),
                predicted=predicted.get(case.requests),
            )
            rows.append(row)
    return rows
