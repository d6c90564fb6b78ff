"""Files that are written whole or not at all, locked for one process at a time, and read with a reason for failure."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_POLL_SECONDS = 0.02


def default_cache() -> Path:
    """The user's cache folder (XDG_CACHE_HOME, else ~/.cache) / fedcar."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedcar"


@contextmanager
def whole_file(file: Path) -> Iterator[IO[str]]:
    """A text file to write that takes its name when it is whole: an error leaves what was there before."""
    if file.exists() and not file.is_file():  # a device or a pipe takes what comes
        with file.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    with written_whole(file) as new, new.open("x", encoding="utf-8", newline="\n") as stream:
        yield stream


def check_file(file: Path) -> None:
    """OSError, before long work, where `whole_file` could not begin; leaves nothing behind."""
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if file.is_file() or not file.exists():
        place = file.resolve()
        probe = place.with_name(f".{place.name}.new-{secrets.token_hex(4)}")
        probe.touch(exist_ok=False)
        probe.unlink()


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A place to write to that takes the file's name in one step: who looks finds the former file or all of this."""
    place = file.resolve()
    new = place.with_name(f".{place.name}.new-{secrets.token_hex(4)}")
    try:
        yield new
        to_disk(new)
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)
    to_disk(place.parent)


@contextmanager
def lock_of(path: Path, seconds: float = math.inf, *, create: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of a file, waiting so long for it; False where it is still held elsewhere.

    The lock ends with the process, whatever ends that, and leaves nothing but the file, which is made where it is
    missing (for its owner alone). With `create=False` it must be there, and may be a folder. A second hold of one lock
    is refused within a process as well. Several may hold it `shared` at once, but none while another has it whole
    (Windows: every hold is whole).

    Raises OSError where the file cannot be opened, or the system cannot lock it (Windows: folders).
    """
    # Only where a lock is taken: a bundle is searched without this library. Not its FileLock, which goes by name,
    # cannot hold a folder and falls back to a file that outlives a killed process.
    from filelock import lock_descriptor

    attempt = _locked_shared if shared and fcntl is not None else partial(lock_descriptor, blocking=False)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o600)
    try:
        end = time.monotonic() + seconds
        while not (free := attempt(descriptor)) and time.monotonic() < end:
            time.sleep(LOCK_POLL_SECONDS)
        yield free
    finally:
        os.close(descriptor)


def _locked_shared(descriptor: int) -> bool:
    """Hold the lock together with others that share it; False where somebody has it whole."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace_file(file: Path, content: bytes) -> None:
    """A crash leaves the former file or the new one."""
    with written_whole(file) as new:
        new.write_bytes(content)


def replace_json(file: Path, content: object) -> None:
    """As `write_json`; a crash leaves the former file or the new one."""
    with written_whole(file) as new:
        write_json(new, content)


def write_json(file: Path, content: object) -> None:
    file.write_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def to_disk(path: Path) -> None:
    if os.name == "nt":  # which cannot open a folder, nor flush what is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    """Why in a few words; safetensors hands on the system's error as text."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"(?:code: |os error )(\d+)", str(error))
    return os.strerror(int(number[1])) if number else str(error).splitlines()[0]
