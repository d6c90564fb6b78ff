"""Seconds and memory, as they are reported beside results."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Clock:
    """Seconds by step: `lap` books the time since the last lap under a name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 3)
        self._last = now


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def free_memory() -> int | None:
    """Bytes of memory that are free or can be freed at once; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return None


class OtherWork:
    """What everybody but this process takes of the machine's processors from now on."""

    def __init__(self) -> None:
        self._start = (_worked(), time.process_time(), time.perf_counter())

    def share(self, seconds: float = 0.0) -> float | None:
        """Their share of all processors' time until now, or until so many seconds from now, between 0 and 1.

        None where the system does not tell. A virtual machine's stolen time is others' work.
        """
        time.sleep(seconds)
        worked, own, clock = _worked(), time.process_time(), time.perf_counter()
        before, own_before, start = self._start
        if worked is None or before is None or clock == start:
            return None
        all_of_it = (clock - start) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (worked - before - (own - own_before)) / all_of_it))


def _worked() -> float | None:
    """CPU seconds that all processors have worked since the machine was started."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii", errors="replace").split("\n", 1)[0].split()
        user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, first[1:9])
        return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def multiplies_bfloat16() -> bool:
    """Whether the processor, or the GPU where torch finds one, multiplies bfloat16; elsewhere it is slower, not faster.

    By what the processor says of itself, so that the same machine always says the same.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
