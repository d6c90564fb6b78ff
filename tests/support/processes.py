"""Processes of their own, for what is killed and for what happens at the same time.

They are forked from a server without threads. A fork of the test run itself takes over the locks that its threads hold,
and can then wait for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "fedcar.training.train"])
LIMIT = 120.0  # seconds


def kill_itself(*_: object) -> None:
    """As by kill -9 from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(action: Callable[..., object], *arguments: object) -> bool:
    """Whether a process that does this, a function that pickle finds by its name, is killed on the way."""
    process = PROCESSES.Process(target=action, args=arguments, daemon=True)
    process.start()
    process.join(LIMIT)
    assert process.exitcode is not None, f"still running after {LIMIT:g} seconds"
    return process.exitcode == -signal.SIGKILL
