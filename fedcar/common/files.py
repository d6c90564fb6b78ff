"""Files that are written whole or not at all, locked for one process at a time, and read with a reason for failure."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from fedcar.errors import FedcarError, FedcarWarning

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_POLL_SECONDS = 0.02


def default_cache() -> Path:
    """The user's cache folder (XDG_CACHE_HOME, else ~/.cache) / fedcar.

    Where the user has no home (containers), or none to write to, a folder among the temporary ones, with a warning.
    Raises FedcarError where somebody else has that one.
    """
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "fedcar"
    if has_home() and _can_hold(folder := Path.home() / ".cache" / "fedcar"):
        return folder
    way_out = "name a folder for the cache with --cache or XDG_CACHE_HOME"
    try:
        folder = Path(tempfile.gettempdir()) / f"fedcar-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise FedcarError(f"no home folder to write to, and none for temporary files; {way_out}") from error
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise FedcarError(f"{folder}: not a folder of this user alone; {way_out}")
    message = f"no home folder to write to, so the cache is in {folder}; {way_out} to keep it"
    warnings.warn(message, FedcarWarning, stacklevel=2)
    return folder


def encoders_folder() -> Path:
    """Where in the user's cache is kept what was made of encoders."""
    return default_cache() / "encoders"


def user_folder(kind: str) -> Path:
    """The user's folder of what outlasts a cache: "state" (XDG_STATE_HOME, else ~/.local/state) or "data", / fedcar.

    Raises FedcarError where the user has no home, or none to write to: what is kept there is not for temporary places.
    """
    variable, below = {"state": ("XDG_STATE_HOME", "state"), "data": ("XDG_DATA_HOME", "share")}[kind]
    folder = (
        Path(named) if (named := os.environ.get(variable)) else Path.home() / ".local" / below if has_home() else None
    )
    if folder is None or not _can_hold(folder := folder / "fedcar"):
        raise FedcarError(f"{folder or '~'}: no folder of this user's to write to; name one with {variable}")
    return folder


def has_home() -> bool:
    """Whether the system says where this user's home is; other libraries take "~" for a folder's name if not."""
    return os.path.expanduser("~") != "~"


def _can_hold(folder: Path) -> bool:
    """Whether this user can write to the folder, or make it where it is missing."""
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))  # Path's may raise
    return os.access(there, os.W_OK | os.X_OK)


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

    attempt = share_lock if shared and fcntl is not None else partial(lock_descriptor, blocking=False)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o600)
    try:
        end = time.monotonic() + seconds
        while not (free := attempt(descriptor)) and time.monotonic() < end:
            time.sleep(LOCK_POLL_SECONDS)
        yield free
    finally:
        os.close(descriptor)


def share_lock(descriptor: int, *, blocking: bool = False) -> bool:
    """Hold the lock together with others that share it; False where somebody has it whole. Not on Windows."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | (0 if blocking else fcntl.LOCK_NB))
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


def remove_tree(folder: Path) -> None:
    """Remove a folder as far as it can be removed.

    An interrupt in the middle of `rmtree` may come out of it as an OSError, raised while it cleans up (Python 3.11
    closes a file a second time). It stays an interrupt here, or whoever writes for ever could not be stopped.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if error.__context__ is not None and not isinstance(error.__context__, Exception):
            raise error.__context__ from None


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
