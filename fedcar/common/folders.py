"""Folders that fedcar writes: whole or not at all, and refused when one byte of them has changed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fedcar.common.files import lock_of, reason_of, remove_tree, share_lock, to_disk, write_json
from fedcar.errors import FedcarError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
ANYTHING = "anything"  # of `replaces`: whatever is there
RESTORE = "restore the folder from a copy"
READERS_SECONDS = 60.0  # so long a replaced folder waits for its readers; after that the next writer removes it
_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


class ReplacedError(FedcarError):
    """Somebody else has replaced the folder meanwhile."""


def write_folder(
    target: Path, kind: str, write: Callable[[Path], None], replaces: str | None = ANYTHING, *, private: bool = False
) -> None:
    """Let `write` fill a temporary folder, seal it with hashes and put it in the place of `target` in one step.

    Who may read it the umask says, whatever modes `write` gave its files; a `private` one is for its owner alone.
    An existing fedcar folder of the same kind is replaced; any other existing folder is refused. A crash, a full disk
    or an error in `write` leaves what was there before. What others are reading is removed when they have read it.

    With `replaces`, a `seal_of`, only the folder with that seal is replaced, with None none at all: ReplacedError where
    another one is there, also where another writer is ready at the same moment.
    """
    check_replaceable(target, kind)
    try:
        place = target.resolve()
        with _parent_of(place), _temporary_beside(place) as temporary:
            if private:
                temporary.chmod(0o700)
            write(temporary)
            _seal(temporary, kind)
            with _locked(place.parent, math.inf):  # writers come one after the other here, for this moment
                if replaces not in (ANYTHING, seal_of(place)):
                    raise ReplacedError(f"{target}: changed by somebody else meanwhile, so nothing was written")
                _put_in_place(temporary, place)
    except (OSError, SafetensorError) as error:
        raise FedcarError(
            f"{target}: cannot be written ({reason_of(error)}); free space or choose another folder"
        ) from error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `target`, missing or empty, when it is whole; an error leaves nothing.

    It is not sealed: for what other programs read and people change, as far as the umask lets them. Raises OSError
    where it cannot be written.
    """
    place = target.resolve()
    with _parent_of(place), _temporary_beside(place) as temporary:
        yield temporary
        _share(temporary)
        for path in temporary.rglob("*"):
            to_disk(path)
        to_disk(temporary)
        if place.exists():
            place.rmdir()
        temporary.rename(place)
        to_disk(place.parent)


def check_replaceable(target: Path, kind: str) -> None:
    """Refuse a target that exists and is not a fedcar folder of this kind, or holds files that fedcar did not write."""
    try:
        if not target.exists() and not target.is_symlink():
            return
        if not target.is_dir():
            raise FedcarError(f"{target}: a file stands there; choose another name")
        names = set(os.listdir(target))
    except OSError as error:
        raise FedcarError(f"{target}: cannot be looked into ({reason_of(error)}); choose another folder") from error
    if not names:
        return
    manifest = _manifest(target)
    if manifest is None or manifest["kind"] != kind:
        raise FedcarError(f"{target}: exists and is not a fedcar {kind}; choose another name or move it away")
    others = sorted(names - {MANIFEST, MANIFEST_HASH, *manifest["sha256"]})
    if others:
        raise FedcarError(f"{target / others[0]}: not written by fedcar, and would be lost; move it out of the {kind}")


def check_target(target: Path, kind: str) -> None:
    """Refuse, before long work, a target that could not be written after it; leaves nothing behind."""
    check_replaceable(target, kind)
    try:
        place = target.resolve()
        parent = next(folder for folder in place.parents if folder.exists())
        probe = parent / f".{place.name}.new-{secrets.token_hex(4)}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise FedcarError(f"{target}: cannot be written ({reason_of(error)}); choose another folder") from error


def made_once(folder: Path, last: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache; where it is not whole, `write` fills one beside it whose files are then moved here.

    The file `last` comes last, and says that all are there. Several processes may make it: they write the same. Raises
    OSError where it cannot be written.
    """
    if not (folder / last).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_unfinished(os.getpid())) as temporary:
            write(Path(temporary))
            folder.mkdir(mode=0o700, exist_ok=True)
            for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == last):
                file.replace(folder / file.name)
    return folder


def remove_unfinished(parent: Path, process: int) -> None:
    """Remove what a process that was killed was making in this folder, see `made_once`."""
    for folder in parent.glob(f"{_unfinished(process)}*"):
        remove_tree(folder)


def _unfinished(process: int) -> str:
    return f".unfinished-{process}-"


def remove_folder(folder: Path) -> None:
    """Remove a folder that fedcar wrote, if it is there."""
    if _manifest(folder) is not None:
        remove_tree(folder)


@contextmanager
def opened_folder(folder: Path, kind: str) -> Iterator[Path]:
    """A sealed folder to read from, checked as by `check_folder`: what was checked is what is read.

    The folder is opened once, and who replaces it meanwhile waits before the old one is removed. Where a system cannot
    do that (all but Linux), ReplacedError follows if it was replaced in the middle.
    """
    with ExitStack() as stack:
        descriptor = _open_shared(folder)
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        place = Path(f"/proc/self/fd/{descriptor}")
        if not place.is_dir():
            before = seal_of(folder)
            check_folder(folder, kind)
            yield folder
            if seal_of(folder) != before:
                raise ReplacedError(f"{folder}: was replaced while it was read; try again")
            return
        try:
            check_folder(place, kind)
            yield place
        except FedcarError as error:
            raise type(error)(str(error).replace(str(place), str(folder))) from error


def _open_shared(folder: Path) -> int | None:
    """A descriptor of the folder, with a lock that readers share; None where folders cannot be opened."""
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        except OSError:
            return None
        with suppress(OSError):  # a file system without locks
            share_lock(descriptor, blocking=True)
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)  # replaced before it was locked


def seal_of(folder: Path) -> str | None:
    """What changes whenever the folder is written anew with other content; None where there is no sealed folder."""
    try:
        return (folder / MANIFEST_HASH).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def check_folder(folder: Path, kind: str, way_out: str = RESTORE) -> None:
    """Refuse a folder that is not a sealed fedcar folder of this kind, or of which any file has changed."""
    if not folder.is_dir():
        problem = "a file, not a folder" if folder.exists() else "no such folder"
        raise FedcarError(f"{folder}: {problem}; give the folder of a fedcar {kind}")
    manifest = _manifest(folder)
    if not (folder / MANIFEST).exists() and not (folder / MANIFEST_HASH).exists():
        raise FedcarError(f"{folder}: not a fedcar {kind} ({MANIFEST} is missing); give another folder")
    sealed = _file_hash(folder / MANIFEST, way_out).encode() + b"\n"
    if _content(folder / MANIFEST_HASH, way_out) != sealed:
        raise FedcarError(f"{folder / MANIFEST}: does not match {MANIFEST_HASH}, so one of them was changed; {way_out}")
    if manifest is None:
        raise FedcarError(f"{folder / MANIFEST}: not one that fedcar writes; {way_out}")
    if manifest["kind"] != kind:
        raise FedcarError(f"{folder}: a fedcar {manifest['kind']}, not a {kind}; give another folder")
    if manifest["format_version"] > FORMAT_VERSION:
        raise FedcarError(
            f"{folder}: written in format {manifest['format_version']}, this fedcar reads up to {FORMAT_VERSION}; "
            "update fedcar"
        )
    for name, expected in manifest["sha256"].items():
        if _file_hash(folder / name, way_out) != expected:
            raise FedcarError(f"{folder / name}: does not match its sha256, so it was changed; {way_out}")


def kind_of(folder: Path) -> str | None:
    """Which kind of fedcar folder this is, before anything in it is checked; None where it is none."""
    manifest = _manifest(folder)
    return None if manifest is None else str(manifest["kind"])


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest as far as it can be read; None where there is none that fedcar wrote."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        whole = isinstance(manifest["kind"], str) and isinstance(manifest["format_version"], int)
        return manifest if whole and isinstance(manifest["sha256"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(folder: Path, kind: str) -> None:
    """Write the manifest (kind, format version, sha256 of every file) and its own hash; everything reaches the disk."""
    hashes = {file.name: _file_hash(file) for file in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"kind": kind, "format_version": FORMAT_VERSION, "sha256": hashes})
    (folder / MANIFEST_HASH).write_bytes(_file_hash(folder / MANIFEST).encode() + b"\n")
    _share(folder)
    for file in folder.iterdir():
        to_disk(file)
    to_disk(folder)


def _share(folder: Path) -> None:
    """Make the files in it as open as the folder is: libraries write theirs for the owner alone, or as a copy was."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextmanager
def _parent_of(place: Path) -> Iterator[None]:
    """The parent folders, made where they are missing and taken away again after an error."""
    missing = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


@contextmanager
def _temporary_beside(place: Path) -> Iterator[Path]:
    """A new folder beside the place, locked while its process lives; what killed processes left there is removed."""
    for leftover in place.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(place.name)}\.new-[0-9a-f]{{8}}", leftover.name):
            with _locked(leftover, 0.0) as locked:
                if locked:
                    remove_tree(leftover)
    while True:
        temporary = place.with_name(f".{place.name}.new-{secrets.token_hex(4)}")
        temporary.mkdir()
        try:
            with _locked(temporary, math.inf):
                if temporary.exists():  # no other process took it for a leftover before it was locked
                    yield temporary
                    return
        finally:  # after an exchange this is the old folder, which somebody may be reading
            _remove_read(temporary)


def _remove_read(folder: Path) -> None:
    """Remove a folder once those who opened it have read it."""
    with _locked(folder, READERS_SECONDS) as locked:
        if locked is not False:
            remove_tree(folder)


@contextmanager
def _locked(folder: Path, wait: float) -> Iterator[bool | None]:
    """Hold the folder's lock, which ends with the process; False where it is held elsewhere, None without locks."""
    with ExitStack() as lock:
        locked = None
        with suppress(OSError):
            locked = lock.enter_context(lock_of(folder, wait, create=False))
        yield locked


def _put_in_place(temporary: Path, place: Path) -> None:
    if not place.exists():
        try:
            temporary.rename(place)
            to_disk(place.parent)
            return
        except OSError:
            if not place.exists():
                raise  # otherwise another writer was first, and what it wrote is replaced
    if not _exchange(temporary, place):
        aside = place.with_name(f".{place.name}.before")
        remove_tree(aside)  # of a process that was killed here
        place.rename(aside)
        try:
            temporary.rename(place)
        except BaseException:
            aside.rename(place)
            raise
        aside.rename(temporary)  # as after an exchange
    to_disk(place.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, so that there is no moment without a whole one; False where that cannot be done."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        paths = os.fsencode(first), os.fsencode(second)
        if hasattr(library, "renameat2"):
            return bool(library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
        return bool(library.renamex_np(*paths, _EXCHANGE) == 0)
    except (AttributeError, OSError, TypeError):
        return False


def _file_hash(file: Path, way_out: str = RESTORE) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise _unreadable(file, error, way_out) from error
    return digest.hexdigest()


def _content(file: Path, way_out: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error, way_out) from error


def _unreadable(file: Path, error: OSError, way_out: str) -> FedcarError:
    if isinstance(error, PermissionError):
        way_out = "let this user read it (chmod), or run as its owner"
    return FedcarError(f"{file}: cannot be read ({reason_of(error)}); {way_out}")
