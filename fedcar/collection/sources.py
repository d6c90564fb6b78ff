"""A file of somebody else as UTF-8 bytes: gzip is unpacked, UTF-16 recoded, and nothing is waited for without end."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import select
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from fedcar.errors import FedcarError, typed_path

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
WIDE = {  # by the mark they begin with; the longer marks first, as one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CHUNK = 1 << 16
PATIENCE = 10  # seconds
WESTERN_SHARE = 0.3  # of the letters of a Western European line, at most, have an accent


def is_there(path: Path) -> bool:
    """Return whether something stands at the path, readable or not."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # there, but closed to us: reading it says so
        return True
    return True


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """A path to read as often as one likes: a pipe or standard input ("-") is copied first, and gone in the end.

    The name of the copy ends in what its content is, where the path does not say it. Nothing that comes within
    PATIENCE seconds, and what is neither file, folder nor pipe, is refused. Errors name the path that was given.
    """
    place = Path("/dev/stdin") if str(path) == "-" else path
    mode = place.stat().st_mode if is_there(place) else stat.S_IFREG
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode) and place.parts[:2] != ("/", "dev"):
        yield path
        return
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        raise FedcarError(f"{path}: a device or a terminal, not a file; write it into a file first")
    with tempfile.TemporaryDirectory(prefix="fedcar-") as folder:
        copy = Path(folder) / (place.name or "pipe")
        try:
            _drain(place, path, copy)
        except OSError as error:
            raise FedcarError(f"{path}: cannot be read ({error.strerror}); write it into a file first") from error
        if not place.suffix:
            copy = copy.rename(copy.with_suffix(_ending(copy)))
        try:
            yield copy
        except FedcarError as error:
            raise FedcarError(str(error).replace(str(copy), str(path))) from error


def _drain(place: Path, path: Path, copy: Path) -> None:
    """Copy what comes, as long as something comes; opening a pipe does not wait for its writer."""
    descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        with copy.open("wb") as file:
            while True:
                if not select.select([descriptor], [], [], PATIENCE)[0]:
                    raise FedcarError(
                        f"{path}: a pipe into which nothing came for {PATIENCE} s; write it into a file first"
                    )
                if not (chunk := os.read(descriptor, CHUNK)):
                    return
                file.write(chunk)
    finally:
        os.close(descriptor)


def _ending(copy: Path) -> str:
    with opened(copy) as file:
        head = file.read(64).lstrip()
    packed = ".gz" if copy.read_bytes()[:2] == GZIP else ""
    return (".parquet" if head.startswith(b"PAR1") else ".jsonl" if head[:1] in (b"{", b"[") else ".csv") + packed


def _refuse_named_pipe(path: Path) -> None:
    """Refuse a pipe whose writer may never come; one that waits already is let go.

    /dev/stdin and the shell's <(...) pass: their writer is there.
    """
    try:
        named = stat.S_ISFIFO(path.resolve().stat().st_mode)
    except OSError:  # not there, or a pipe without a name
        return
    if named:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        raise FedcarError(f"{path}: a pipe, not a file; write it into a file first: cat {path} > FILE")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, open to be read as UTF-8 bytes; FedcarError where it cannot be read, also while it is read."""
    _refuse_named_pipe(path)
    try:
        with path.open("rb") as file:
            yield _plain(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FedcarError(f"{path}: broken gzip ({error}); fetch or pack it again") from error
    except OSError as error:
        raise FedcarError(f"{path}: cannot be read ({error.strerror}); check the path and your permissions") from error


def _plain(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    if file.peek(2)[:2] == GZIP:
        file = io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=file)), CHUNK)
    head = file.peek(4)[:4]
    if head == ZIP:
        raise FedcarError(f"{path}: a ZIP archive, as an Excel file is; unpack it, or save the sheet as CSV UTF-8")
    encoding = next((name for mark, name in WIDE.items() if head.startswith(mark)), None)
    return io.BufferedReader(_Recoded(file, encoding, path), CHUNK) if encoding else file


class _Recoded(io.RawIOBase):
    """The UTF-8 of a file in UTF-16 or UTF-32; its byte order mark says which, and is dropped."""

    def __init__(self, file: io.BufferedReader, encoding: str, path: Path) -> None:
        self._file, self._encoding, self._path = file, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = self._file.read(CHUNK)
            try:
                self._left = self._decoder.decode(chunk, final=not chunk).encode()
            except UnicodeError as error:
                name = self._encoding.upper()
                raise FedcarError(f"{self._path}: begins as {name}, but is not valid; save it as UTF-8") from error
            if not chunk:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def way_to_utf8(raw: bytes, path: Path) -> str:
    """What a line that is not UTF-8 looks like, and the command that converts its file; "" where nothing fits."""
    name, encoding = _looks_like(raw)
    return f": it looks like {name} (iconv -f {encoding} -t UTF-8 {typed_path(path)} > NEW)" if name else ""


def _looks_like(raw: bytes) -> tuple[str, str]:
    """A name and what iconv calls it; by the letters that the line would then have."""
    high = sum(byte >= 0x80 for byte in raw)
    letters = high + sum(chr(byte).isalpha() for byte in raw if byte < 0x80)
    if high <= WESTERN_SHARE * letters and _share(raw, "cp1252", str.isalpha) >= 0.5:
        return "Windows-1252", "WINDOWS-1252"
    if _share(raw, "cp1251", lambda letter: "а" <= letter <= "я") >= 0.7:
        return "Windows-1251", "WINDOWS-1251"
    if _share(raw, "koi8_r", lambda letter: "а" <= letter <= "я") >= 0.7:
        return "KOI8-R", "KOI8-R"
    if _share(raw, "shift_jis", lambda letter: "\u3040" <= letter <= "\u30ff") >= 0.3:
        return "Shift JIS", "SHIFT_JIS"
    if _share(raw, "euc_kr", lambda letter: "\uac00" <= letter <= "\ud7a3") >= 0.9:
        return "EUC-KR", "EUC-KR"
    if _share(raw, "gb18030", lambda letter: "\u4e00" <= letter <= "\u9fff") >= 0.5:
        return "GB 18030", "GB18030"
    return ("Windows-1252", "WINDOWS-1252") if high == 1 else ("", "")


def _share(raw: bytes, encoding: str, is_one: Callable[[str], bool]) -> float:
    """The share of the characters beyond ASCII that are such letters; 0 where the encoding does not fit."""
    try:
        beyond = [letter for letter in raw.decode(encoding) if not letter.isascii()]
    except UnicodeError:
        return 0.0
    return sum(map(is_one, beyond)) / len(beyond) if beyond else 0.0
