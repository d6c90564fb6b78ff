"""Processes that fedcar starts and stops: each ends with the one that started it, whatever ends that."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedcar.common.files import lock_of
from fedcar.errors import FedcarError

STOP_SECONDS = 3.0
LEAST_LIFE = 5.0  # seconds a process must live before its restart is free of waiting
LONGEST_WAIT = 30.0
LOOKED_AT_SECONDS = 0.5
LOOKING_SECONDS = 0.1 if sys.platform == "win32" else 0.0  # where those who look cannot share the lock
PR_SET_PDEATHSIG = 1
LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


def fedcar_command(*arguments: object) -> list[str]:
    """This fedcar as a command of its own."""
    return [sys.executable, "-c", "from fedcar.cli.main import main; main()", *map(str, arguments)]


class Child:
    """A process with its log file, restarted on demand; it is killed when the thread that started it ends."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.command, self.log, self.environment = list(command), log, dict(environment or os.environ)
        self.process: subprocess.Popen[bytes] | None = None
        self.started, self.again, self.wait, self.restarts = 0.0, 0.0, 0.0, -1

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment,
                preexec_fn=_end_with_parent if LIBRARY is not None else None,  # noqa: PLW1509
            )  # fmt: skip
        self.started, self.again, self.restarts = time.monotonic(), 0.0, self.restarts + 1

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def keep_alive(self, before: Callable[[], None] = lambda: None) -> bool:
        """Start it again where it has died, ever later where it dies at once; whether it was started.

        `before` is called first; where it raises FedcarError the start waits on.
        """
        if self.alive:
            return False
        now = time.monotonic()
        if not self.again:
            self.wait = 0.0 if now - self.started > LEAST_LIFE else min(max(1.0, 2 * self.wait), LONGEST_WAIT)
            self.again = now + self.wait
        if now < self.again:
            return False
        try:
            before()
        except FedcarError:
            self.wait = min(max(1.0, 2 * self.wait), LONGEST_WAIT)
            self.again = now + self.wait
            return False
        self.start()
        return True

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_line(self) -> str:
        """The last line of its log that says something, for a message."""
        with suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""


@contextmanager
def locked(file: Path, what: str = "") -> Iterator[bool]:
    """Hold a lock that ends with the process; False where another process has it. Its file says `what` it is for."""
    with lock_of(file, LOOKED_AT_SECONDS) as free:  # somebody may just be looking whether it is held
        if free:
            file.write_text(what, encoding="utf-8")
        yield free


def held(file: Path) -> bool:
    """Whether a process holds this lock. Those who look share it, so that nobody waits for them or for it."""
    with lock_of(file, LOOKING_SECONDS, shared=True) as free:
        return not free


def free_port() -> int:
    """A port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, option: str) -> None:
    """Refuse a port that is in use or may not be used."""
    if not 1 <= port <= 65535:
        raise FedcarError(f"{option} {port}: must be from 1 to 65535")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise FedcarError(
            f"{option} {port}: cannot be used on {host} ({error.strerror}); stop what uses it, or give another"
        ) from error


def _end_with_parent() -> None:
    """Linux: SIGKILL for this process when its parent ends, kill -9 included."""
    LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
