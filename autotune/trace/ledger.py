"""Counts the look-ups of one process, and has them written.

The server's threads only count; a thread of this module's own writes. A look-up that is new is
written at once, counts now and then and at the end. A call that is like others costs a look into a
dictionary. The caller's tensors are read until a kernel is known well enough.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import multiprocessing.util
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from autotune.trace.journal import Journal
from autotune.trace.tensors import Facts, facts_of, is_start

#: What vLLM calls the arguments of the look-up, in their order.
_NAMES = (
    *("op_type", "max_loras", "batch", "hidden_size", "rank", "num_slices"),
    *("add_inputs", "moe_intermediate_size"),
)

#: After so many calls all layers of a kernel were seen: no model has more that launch the same.
_KNOWN = 512

#: Seconds until counts are written again: first, and at most. They double.
_FIRST_S, _MOST_S = 1.0, 600.0

#: Seconds that the end of a process may wait for what is still to be written.
_PATIENCE_S = 5.0

_LOG = logging.getLogger(__name__)


class Asked:
    """One distinct look-up.

    Attributes:
        number: Its place among those of the process, from 0.
        line: What is written of it when it is new.
        kernel: What is known of its kernel at any batch size.
        facts: The caller's tensors.
        count: How often it was asked.
        when: ``start`` before the first request, ``capture`` where a CUDA graph was captured then,
            ``serving`` otherwise.
        told: What was written last.
    """

    __slots__ = ("count", "facts", "kernel", "line", "number", "told", "when")

    def __init__(
        self, number: int, line: dict[str, Any], kernel: Kernel, facts: Facts, when: str
    ) -> None:
        self.number, self.line, self.kernel, self.facts = number, line, kernel, facts
        self.count, self.when = 0, when
        self.told: tuple[object, ...] | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """What changes with every call."""
        layers = len(self.kernel.places.get(self.facts, ()))
        return {"count": self.count, "layers": max(layers, 1), "when": self.when}


class Kernel:
    """What is known of a kernel, whatever the batch size.

    Attributes:
        calls: How often it was asked while its callers were read.
        places: Per kind of tensors the addresses of the first weights: one a layer.
    """

    __slots__ = ("calls", "places")

    def __init__(self) -> None:
        self.calls = 0
        self.places: dict[Facts, set[int]] = {}

    @property
    def is_known(self) -> bool:
        """Whether its next caller has the tensors that the others had."""
        return self.calls >= _KNOWN and len(self.places) <= 1


class Ledger:
    """The look-ups of one process; a process that it forks begins anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        #: By the arguments of a call, its look-up; no caller is read for those.
        self.settled: dict[Any, Asked] = {}
        self._begin()
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self.close)

    def _begin(self) -> None:
        self.settled.clear()
        self._asked: dict[Any, Asked] = {}
        self._kernels: dict[Any, Kernel] = {}
        self._journal = Journal(self._path)
        self._new: deque[Asked] = deque()
        self._all: list[Asked] = []
        self._numbers = itertools.count()
        self._wake, self._done = threading.Event(), threading.Event()
        self._writer: threading.Thread | None = None
        self._is_broken = False

    def watched(self, look_up: Callable[..., Any]) -> Callable[..., Any]:
        """The look-up, counted. Its results and its exceptions stay as they are."""
        settled, note = self.settled, self._note

        @functools.wraps(look_up)
        def asked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever vLLM passes
            try:
                known = settled.get((args, *kwargs.values()))
                if known is None:
                    note(args, kwargs, sys._getframe(1))  # noqa: SLF001 - the caller's tensors
                else:
                    known.count += 1
            except Exception as error:  # noqa: BLE001 - a server must not fail for this
                self._give_up(error)
            return look_up(*args, **kwargs)

        return asked

    def _give_up(self, error: Exception) -> None:
        if not self._is_broken:
            self._is_broken = True
            _LOG.warning("%s: no further look-up is traced: %r", self._path, error)

    def _note(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], frame: FrameType) -> None:
        """Count a look-up whose caller is read."""
        if self._is_broken:
            return
        call = (args, *kwargs.values())
        named = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        if not all(isinstance(each, int | str | None) for each in named.values()):
            return  # a compiler asks with symbols
        facts, place = facts_of(str(named["op_type"]), frame)
        asked = self._asked.get((call, facts))
        if asked is None:
            asked = self._asked[call, facts] = self._first(named, facts, frame)
            self._all.append(asked)
        kernel = asked.kernel
        kernel.calls += 1
        if facts.has_tensors:
            kernel.places.setdefault(facts, set()).add(place or 0)
        asked.count += 1
        is_new = asked.count == 1
        if asked.when != "capture" and _is_capturing():
            asked.when, is_new = "capture", True
        if is_new:
            self._new.append(asked)
            self._write_soon()
        if kernel.is_known and (asked.when != "start" or asked.count >= _KNOWN):
            self.settled[call] = asked

    def _first(self, named: Mapping[str, Any], facts: Facts, frame: FrameType) -> Asked:
        keys = {name: named.get(name) for name in _NAMES}
        kind = tuple(value for name, value in keys.items() if name != "batch")
        kernel = self._kernels.setdefault(kind, Kernel())
        given = {**keys, **facts._asdict()}
        line = {"op": given.pop("op_type")}
        line |= {name: value for name, value in given.items() if value is not None}
        when = "start" if is_start(frame) else "serving"
        return Asked(next(self._numbers), line, kernel, facts, when)

    # ----------------------------------------------------------------- writing

    def _write_soon(self) -> None:
        if self._writer is None:
            # Here, as CUDA knows this thread's device.
            self._journal.gpu = _gpu()
            self._writer = threading.Thread(target=self._write, name="autotune-trace", daemon=True)
            self._writer.start()
            # A forked process of multiprocessing may end without atexit.
            multiprocessing.util.Finalize(None, self.close, exitpriority=0)
        self._wake.set()

    def _write(self) -> None:
        """Write until the process ends: what is new at once, counts now and then."""
        pause_s = _FIRST_S
        due_s = time.monotonic() + pause_s
        try:
            while not self._done.is_set():
                self._wake.wait(max(0.0, due_s - time.monotonic()))
                self._wake.clear()
                is_due = time.monotonic() >= due_s
                self._write_now(counts=is_due)
                if is_due:
                    pause_s = min(2 * pause_s, _MOST_S)
                    due_s = time.monotonic() + pause_s
            self._write_now(counts=True)
        except Exception as error:  # noqa: BLE001 - a server must not fail for this
            self._give_up(error)

    def _write_now(self, *, counts: bool) -> None:
        changed = []
        while self._new:
            changed.append(self._new.popleft())
        if counts:
            changed += self._all[:]
        lines, told = [], []
        for asked in dict.fromkeys(changed):
            figures = asked.figures
            if asked.told != tuple(figures.values()):
                whole = asked.line if asked.told is None else {}
                lines.append({"number": asked.number, **whole, **figures})
                told.append((asked, tuple(figures.values())))
        self._journal.append(lines)
        for asked, values in told:
            asked.told = values

    def close(self) -> None:
        """Have everything written that was counted; a second call has nothing left to write."""
        self._done.set()
        self._wake.set()
        if self._writer is not None and self._writer is not threading.current_thread():
            self._writer.join(_PATIENCE_S)


def _gpu() -> str:
    try:
        return str(sys.modules["torch"].cuda.get_device_name())
    except Exception:  # noqa: BLE001 - there is none, or it is no CUDA device
        return ""


def _is_capturing() -> bool:
    """Whether a CUDA graph is captured just now: its replays will ask nothing."""
    try:
        return bool(sys.modules["torch"].cuda.is_current_stream_capturing())
    except Exception:  # noqa: BLE001 - this torch knows no CUDA
        return False
