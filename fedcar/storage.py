"""Folders that fedcar writes: whole or not at all, and refused when one byte of them has changed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedcar.errors import FedcarError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_folder(target: Path, kind: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, seal it with hashes and put it in the place of `target` in one step.

    An existing fedcar folder of the same kind is replaced; any other existing folder is refused. A crash, a full disk
    or an error in `write` leaves what was there before.
    """
    check_replaceable(target, kind)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        write(temporary)
        _seal(temporary, kind)
        _put_in_place(temporary, target)
    except OSError as error:
        raise FedcarError(f"{target}: cannot be written ({error.strerror or error}); free space or choose another folder") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(target: Path, kind: str) -> None:
    """Refuse a target that exists and is not a fedcar folder of this kind (asked before long work, too)."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise FedcarError(f"{target}: a file stands there; choose another name")
    if any(target.iterdir()) and _kind_of(target) != kind:
        raise FedcarError(f"{target}: exists and is not a fedcar {kind}; choose another name or move it away")


def check_target(target: Path, kind: str) -> None:
    """Refuse, before long work, a target that could not be written after it."""
    check_replaceable(target, kind)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent):
            pass
    except OSError as error:
        raise FedcarError(f"{target}: cannot be written ({error.strerror or error}); choose another folder") from error


def remove_folder(folder: Path) -> None:
    """Remove a folder that fedcar wrote, if it is there."""
    if _kind_of(folder) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def check_folder(folder: Path, kind: str) -> None:
    """Refuse a folder that is not a sealed fedcar folder of this kind, or of which any file has changed."""
    if not folder.is_dir():
        raise FedcarError(f"{folder}: no such folder; give the folder of a fedcar {kind}")
    try:
        manifest_bytes = (folder / MANIFEST).read_bytes()
        sealed = (folder / MANIFEST_HASH).read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise FedcarError(f"{folder}: not a fedcar {kind} ({MANIFEST} is missing); give another folder") from error
    if hashlib.sha256(manifest_bytes).hexdigest() != sealed:
        raise FedcarError(f"{folder / MANIFEST}: does not match {MANIFEST_HASH}, so it was changed; restore the folder from a copy")
    manifest: dict[str, Any] = json.loads(manifest_bytes)
    if manifest["kind"] != kind:
        raise FedcarError(f"{folder}: a fedcar {manifest['kind']}, not a {kind}; give another folder")
    if manifest["format_version"] > FORMAT_VERSION:
        raise FedcarError(
            f"{folder}: written in format {manifest['format_version']}, this fedcar reads up to {FORMAT_VERSION}; update fedcar"
        )
    for name, expected in manifest["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise FedcarError(f"{file}: is missing; restore the folder from a copy")
        if _file_hash(file) != expected:
            raise FedcarError(f"{file}: does not match its sha256, so it was changed; restore the folder from a copy")


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _kind_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_bytes())["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(folder: Path, kind: str) -> None:
    """Write the manifest (kind, format version, sha256 of every file) and its own hash; everything reaches the disk."""
    hashes = {file.name: _file_hash(file) for file in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"kind": kind, "format_version": FORMAT_VERSION, "sha256": hashes})
    (folder / MANIFEST_HASH).write_text(_file_hash(folder / MANIFEST) + "\n", encoding="ascii")
    for file in folder.iterdir():
        _to_disk(file)
    _to_disk(folder)
    folder.chmod(0o755)


def _put_in_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
    elif not _exchange(temporary, target):
        aside = target.with_name(f".{target.name}.before")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        temporary.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    _to_disk(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step (Linux renameat2), so that there is no moment without a whole one."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
