"""A file of somebody else as UTF-8 bytes: gzip is unpacked, UTF-16 recoded, and what would wait for ever is refused."""

from __future__ import annotations

import codecs
import gzip
import io
import shlex
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from fedcar.errors import FedcarError

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
WIDE = {  # by the mark they begin with; the longer marks first, as one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CHUNK = 1 << 16
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


def check_not_a_pipe(path: Path, only_files: bool = False) -> None:
    """Refuse a named pipe, whose writer may never come; with `only_files` a pipe or device of any kind.

    Without it /dev/stdin and the shell's <(...) pass: their writer is there.
    """
    if str(path) == "-":
        raise FedcarError(f"{path}: standard input is not read; write it into a file first: cat > FILE")
    try:
        mode = path.stat().st_mode
        named = stat.S_ISFIFO(path.resolve().stat().st_mode) if stat.S_ISFIFO(mode) else False
    except OSError:  # not there, or a pipe without a name
        named, mode = False, path.stat().st_mode if is_there(path) else stat.S_IFREG
    if named or only_files and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FedcarError(f"{path}: a pipe or a device, not a file; write it into a file first: cat {path} > FILE")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, open to be read as UTF-8 bytes; FedcarError where it cannot be read, also while it is read."""
    check_not_a_pipe(path)
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
    return f": it looks like {name} (iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW)" if name else ""


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
