"""Runtimes are tried in a process of their own, which may crash, hang or take too much memory: this one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcar.common.files import encoders_folder
from fedcar.common.folders import remove_unfinished
from fedcar.common.measure import free_memory
from fedcar.encoder.runtimes.names import EXACT
from fedcar.encoder.runtimes.trial import EVENTS, ORDER

if TYPE_CHECKING:
    from fedcar.encoder.model import FrozenModel

START_SECONDS = 300.0  # until the libraries are read; on a quiet machine it takes four
IDLE_SECONDS, IDLE_CPU = 60.0, 0.5  # whoever computes so little in so long hangs
LEAST_SECONDS, MOST_SECONDS = 60.0, 600.0  # for building a runtime and running it
SHARE_OF_MEMORY = 0.5  # of what is free
LEAST_COSINE = 0.9  # below it numbers are not less exact but wrong
POLL_SECONDS = 0.02
CODE = "import sys; sys.path[:] = {path!r}; from fedcar.encoder.runtimes.trial import main; main({folder!r})"


@dataclass(frozen=True)
class Known:
    """What trying showed of a runtime: its mean cosine with torch, or its fault and the same in words."""

    cosine: float | None = None
    fault: str = ""  # crash, numbers, time, memory or error
    said: str = ""


@dataclass
class Trial:
    """What trying showed: of each runtime; the seconds of those that agree, by clock; and what others took meanwhile.

    `others` is their share of the machine's processors, None where the system does not tell. `reason` says why nothing
    could be tried.
    """

    known: dict[str, Known] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    others: float | None = None
    reason: str = ""


def tried(
    model: FrozenModel,
    names: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    agreement: float | None = None,
    share: float = 0.0,
) -> Trial:
    """Build and run these runtimes on the texts in another process, torch first; time those that reach `agreement`.

    One that ends that process, hangs, or takes more than half of the free memory is known by its fault, and the others
    are tried again without it. Each may take as long as torch would need for everything that is to be encoded, of
    which the texts are a `share` (0: not known), but a minute at least and ten at most. Memory is watched on Linux.

    A folded model is tried as the encoder that it was made of: of the same shape, with another table.

    Formal guarantees:
        a_runtime_that_kills_its_process_is_no_candidate
        a_runtime_that_hangs_is_no_candidate
        a_runtime_with_wrong_numbers_is_no_candidate
    """
    trial, left = Trial(), [EXACT, *(name for name in names if name != EXACT)]
    while True:
        order = {
            "encoder": str(model.folder),
            "pooling": model.pooling,
            "runtimes": left,
            "token_ids": [list(map(int, ids)) for ids in token_ids],
            "agreement": agreement,
            "threads": _threads(),
            "seconds": START_SECONDS + (len(left) + 1) * MOST_SECONDS,
        }
        process = _Process(order, share)
        broken = process.watch()
        for event in process.events:
            _take(trial, event)
        if broken is None:
            return trial
        name, known = broken
        if name not in left or name == EXACT:
            trial.reason = known.said
            return trial
        family = name.partition("-")[0]
        for other in left[left.index(name) :]:  # openvino and openvino-bf16 wait for the same file
            if other == name or (known.fault in ("time", "memory") and other.partition("-")[0] == family):
                trial.known[other] = known
        left = [other for other in left if other not in trial.known or not trial.known[other].fault]
        if left == [EXACT]:  # which needs no comparison with itself
            none = {"wall": 0.0, "cpu": 0.0}
            trial.seconds, trial.others = {EXACT: none} if agreement is not None else {}, 0.0
            return trial


def _take(trial: Trial, event: dict[str, Any]) -> None:
    name = event.get("of")
    if name is None:
        trial.seconds, trial.others = event.get("seconds", trial.seconds), event.get("others", trial.others)
    elif "cosine" in event:
        cosine = event["cosine"]
        wrong = Known(cosine, "numbers", f"gives wrong numbers (cosine {cosine:.4f} with torch)")
        trial.known[name] = wrong if cosine < LEAST_COSINE else Known(cosine)
    elif "error" in event:
        trial.known[name] = Known(fault="error", said=event["error"])
    else:
        trial.known[name] = Known(fault="memory", said="finds too little memory")


def _threads() -> int:
    import torch

    return torch.get_num_threads()


class _Process:
    """The process in which runtimes are tried, and what it has told so far."""

    def __init__(self, order: dict[str, Any], share: float) -> None:
        self.order, self.share = order, share
        self.events: list[dict[str, Any]] = []
        self.step = self._begun = ""
        self._limit = START_SECONDS
        free = free_memory()
        self._memory = None if free is None else free * SHARE_OF_MEMORY

    def watch(self) -> tuple[str, Known] | None:
        """Wait for its end; None where it was a good one, otherwise the runtime that it was at, and what happened."""
        with tempfile.TemporaryDirectory(prefix="fedcar-trial-") as place:
            folder = Path(place)
            (folder / ORDER).write_text(json.dumps(self.order), encoding="utf-8")
            (folder / EVENTS).touch()
            command = [sys.executable or "python", "-c", CODE.format(path=sys.path, folder=place)]
            with (folder / "log.txt").open("wb") as log:
                try:
                    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                except OSError as error:
                    return "", Known(fault="error", said=f"no process could be started ({error.strerror})")
                try:
                    fault = self._until_the_end(process, folder / EVENTS)
                finally:
                    process.kill()
                    process.wait()
                    remove_unfinished(encoders_folder(), process.pid)
            if fault is None and process.returncode == 0:
                return None
            if fault is None:
                fault = Known(fault="crash", said=f"ends its process ({_how(process.returncode)})")
            if not self.step:
                lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
                last = next((line.strip() for line in reversed(lines) if line.strip()), fault.said)
                fault = Known(fault="error", said=last[:200])
            return self.step, fault

    def _until_the_end(self, process: subprocess.Popen[bytes], file: Path) -> Known | None:
        start = begun = time.monotonic()
        worked = 0.0  # its CPU seconds when it was last seen to work
        with file.open(encoding="utf-8") as stream:
            while True:
                ended = process.poll() is not None
                if self._read(stream.read()):
                    start = begun = time.monotonic()
                if ended:
                    return None
                now, cpu, memory = time.monotonic(), *_used(process.pid)
                if cpu is None or cpu - worked > IDLE_CPU:
                    begun, worked = now, cpu or 0.0
                if now - start > self._limit:
                    return Known(fault="time", said=f"is not done after {self._limit:.0f} seconds")
                if self.step and now - begun > IDLE_SECONDS:
                    return Known(fault="time", said=f"hangs (it did nothing for {IDLE_SECONDS:.0f} seconds)")
                if self._memory is not None and memory > self._memory:
                    said = f"takes more than {self._memory / 1e9:.1f} GB of memory, half of what was free"
                    return Known(fault="memory", said=said)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)

    def _read(self, text: str) -> bool:
        """Whether the text, with what was left of the one before, tells of a new step; a line may come in pieces."""
        further = False
        *lines, self._begun = (self._begun + text).split("\n")
        for event in map(json.loads, filter(None, lines)):
            if "step" in event:
                self.step, further = event["step"], True
                self._limit = MOST_SECONDS if self._limit == START_SECONDS else self._limit
                continue
            self.events.append(event)
            if event.get("of") == EXACT and "seconds" in event and self.share:
                self._limit = min(max(event["seconds"] / self.share, LEAST_SECONDS), MOST_SECONDS)
        return further


def _used(process: int) -> tuple[float | None, float]:
    """CPU seconds and bytes of memory of a process; None and 0 where the system does not tell."""
    try:
        counted = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
        ticks = int(counted[11]) + int(counted[12])  # fields 14 and 15: in user and in kernel mode
        return ticks / os.sysconf("SC_CLK_TCK"), int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None, 0.0


def _how(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"
