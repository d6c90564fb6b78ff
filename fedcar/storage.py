"""Folders that fedcar writes: whole or not at all, and refused when one byte of them has changed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
RESTORE = "restore the folder from a copy"
_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


def write_folder(target: Path, kind: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, seal it with hashes and put it in the place of `target` in one step.

    An existing fedcar folder of the same kind is replaced; any other existing folder is refused. A crash, a full disk
    or an error in `write` leaves what was there before.
    """
    check_replaceable(target, kind)
    try:
        place = target.resolve()
        with _parent_of(place), _temporary_beside(place) as temporary:
            write(temporary)
            _seal(temporary, kind)
            _put_in_place(temporary, place)
    except (OSError, SafetensorError) as error:
        raise FedcarError(
            f"{target}: cannot be written ({_reason(error)}); free space or choose another folder"
        ) from error


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


def check_replaceable(target: Path, kind: str) -> None:
    """Refuse a target that exists and is not a fedcar folder of this kind, or holds files that fedcar did not write."""
    try:
        if not target.exists() and not target.is_symlink():
            return
        if not target.is_dir():
            raise FedcarError(f"{target}: a file stands there; choose another name")
        names = set(os.listdir(target))
    except OSError as error:
        raise FedcarError(f"{target}: cannot be looked into ({_reason(error)}); choose another folder") from error
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
        raise FedcarError(f"{target}: cannot be written ({_reason(error)}); choose another folder") from error


def remove_folder(folder: Path) -> None:
    """Remove a folder that fedcar wrote, if it is there."""
    if _manifest(folder) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def check_folder(folder: Path, kind: str, way_out: str = RESTORE) -> None:
    """Refuse a folder that is not a sealed fedcar folder of this kind, or of which any file has changed."""
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise FedcarError(f"{folder}: {what}; give the folder of a fedcar {kind}")
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


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file; nothing else is read, a pickle least of all."""
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[Any]] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FedcarError(f"{file}: not a safetensors file ({_reason(error)}); {RESTORE}") from error
    return tensors


class RowsOnDisk:
    """An array (n, ...) in a file, of which slices of rows are read when they are asked for.

    Where a few rows here and there are wanted: a mapped file then takes many times their size of memory, since the
    system maps what lies around them too.
    """

    def __init__(self, file: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, dtype
        self._offset, self._row_bytes = offset, dtype.itemsize * math.prod(shape[1:])
        self._stream = file.open("rb", buffering=0)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return the rows from one place to another, read from the disk."""
        import numpy as np

        first, last, _ = rows.indices(len(self))
        result = np.empty((max(0, last - first), *self.shape[1:]), self.dtype)
        self._stream.seek(self._offset + first * self._row_bytes)
        if self._stream.readinto(result.reshape(-1).view(np.uint8).data) != result.nbytes:
            raise FedcarError(f"{self._stream.name}: cut off since it was opened; {RESTORE}")
        return result


def mapped_tensors(file: Path, on_disk: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors of a safetensors file, mapped into memory: each is read from the disk as far as it is used.

    Those of the names `on_disk` are `RowsOnDisk`.
    """
    import numpy as np

    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
    types |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
    tensors: dict[str, Any] = {}
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        content = np.memmap(file, np.uint8, "r", offset=8 + size) if file.stat().st_size > 8 + size else None
        for name, about in header.items():
            first, last = about["data_offsets"]
            if name in on_disk:
                kind, shape = np.dtype(types[about["dtype"]]), tuple(about["shape"])
                tensors[name] = RowsOnDisk(file, 8 + size + first, kind, shape)
                continue
            part = np.zeros(0, np.uint8) if content is None or first == last else content[first:last]
            tensors[name] = np.asarray(part).view(types[about["dtype"]]).reshape(about["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedcarError(f"{file}: not a safetensors file ({error}); {RESTORE}") from error
    return tensors


def kind_of(folder: Path) -> str | None:
    """Which kind of fedcar folder this is, before anything in it is checked; None where it is none."""
    manifest = _manifest(folder)
    return None if manifest is None else str(manifest["kind"])


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A place to write to that takes the file's name in one step: who looks finds the former file or all of this."""
    place = file.resolve()
    new = place.with_name(f".{place.name}.new-{secrets.token_hex(4)}")
    try:
        yield new
        _to_disk(new)
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)
    _to_disk(place.parent)


def replace_json(file: Path, content: object) -> None:
    """As `write_json`; a crash leaves the former file or the new one."""
    with written_whole(file) as new:
        write_json(new, content)


def write_json(file: Path, content: object) -> None:
    file.write_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


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
    for file in folder.iterdir():
        _to_disk(file)
    _to_disk(folder)


# -------------------------------------------------------------------- temporary folders and the exchange


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
            with _locked(leftover, wait=False) as locked:
                if locked:
                    _remove(leftover)
    while True:
        temporary = place.with_name(f".{place.name}.new-{secrets.token_hex(4)}")
        temporary.mkdir()
        try:
            with _locked(temporary, wait=True):
                if temporary.exists():  # no other process took it for a leftover before it was locked
                    yield temporary
                    return
        finally:
            _remove(temporary)


def _remove(folder: Path) -> None:
    """As far as it can be removed. An interrupt within rmtree may end in an error that it does not ignore."""
    with suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the folder's lock, which ends with the process; False where it is held elsewhere or there are no locks."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, place: Path) -> None:
    if not place.exists():
        try:
            temporary.rename(place)
            _to_disk(place.parent)
            return
        except OSError:
            if not place.exists():
                raise  # otherwise another writer was first, and what it wrote is replaced
    if not _exchange(temporary, place):
        aside = place.with_name(f".{place.name}.before")
        _remove(aside)
        place.rename(aside)
        try:
            temporary.rename(place)
        except BaseException:
            aside.rename(place)
            raise
        _remove(aside)
    _to_disk(place.parent)


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


def _to_disk(path: Path) -> None:
    if os.name == "nt":  # which cannot open a folder, nor flush what is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_hash(file: Path, way_out: str = RESTORE) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({_reason(error)}); {way_out}") from error
    return digest.hexdigest()


def _content(file: Path, way_out: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({_reason(error)}); {way_out}") from error


def _reason(error: Exception) -> str:
    """Why in a few words; safetensors hands on the system's error as text."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"(?:code: |os error )(\d+)", str(error))
    return os.strerror(int(number[1])) if number else str(error).splitlines()[0]
