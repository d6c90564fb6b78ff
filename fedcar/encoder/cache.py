"""The hidden-state cache: what the frozen encoder made of a text is computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.files import default_cache, lock_of
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import MAX_TOKENS
from fedcar.encoder.reading import Progress, joined
from fedcar.encoder.runtimes.names import EXACT
from fedcar.errors import FedcarError, typed_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHUNK = 1024
PUBLIC = "public"  # the folder within the cache's
KEY_BYTES, SUM_BYTES = 32, 4


class FeatureCache:
    """Hidden states on disk, memory-mapped, keyed by encoder fingerprint, pooling, length limit and text.

    Three files a key: `states.bin` (a record of `FrozenModel.state_type` a row), `sums.crc32` (4 bytes a row: the
    record's checksum) and `keys.sha256` (32 bytes a row: the text's hash, so that no text is stored). Rows are appended
    in chunks, states first, so that an encoding that was cut off goes on where it stopped; what a crash left beyond the
    last whole row is written over. A record that is not what was written is refused, and never used. Several processes
    may share a cache: it is locked while it is read or written, not while texts are encoded. Hidden states of private
    questions are private: the folder is readable by its owner alone.

    The last bits of a state depend on the texts that went through the model beside it. So texts that are public have a
    part of their own, `public`, in which no question leaves a trace that was not declared public.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_cache()
        self._above: tuple[Path, ...] = ()
        self._known: dict[Path, _Known] = {}

    @cached_property
    def public(self) -> FeatureCache:
        """The part for documents, what is made of them, the packaged reference texts, and questions declared public.

        Formal guarantees:
            public_states_tell_of_no_question: what is read here is the same bits whatever questions were encoded
                before, by whichever command, also where their text is that of a document.
        """
        part = FeatureCache(self.folder / PUBLIC)
        part._above = (*self._above, self.folder)
        return part

    def hidden_states(
        self, encoder: Encoder, texts: Sequence[str], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Texts -> hidden states h (n, d), float32, from disk where they are there, else encoded and kept."""
        hidden_states: NDArray[np.float32] = self._found(encoder.alone, texts, progress, "pooled")
        return hidden_states

    def states(self, encoder: Encoder, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.void]:
        """Texts -> records (n,) of `FrozenModel.state_type`: the hidden state and the mean states of lower layers.

        Of two encoders beside each other each has its own place here; their records are joined.
        """
        states = self._found(encoder.alone, texts, progress)
        return states if encoder.beside is None else joined(states, self._found(encoder.beside, texts, None))

    def _found(
        self, encoder: Encoder, texts: Sequence[str], progress: Progress | None, field_alone: str | None = None
    ) -> NDArray[Any]:
        """The records of these texts, each held against its checksum, or one field of them."""
        keys = list(map(_key, texts))
        with self._place(encoder, texts) as place:
            rows = self._rows(place, encoder)
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
            if progress is not None and len(keys) > len(missing):
                progress(len(keys) - len(missing))
            # longest first, so that a chunk's texts are of similar length and little is padded
            chunks = list(_chunks(sorted(missing, key=lambda key: -len(missing[key]))))
            texts_of = ([missing[key] for key in chunk] for chunk in chunks)
            for chunk, states in zip(chunks, encoder.encode_parts(texts_of, progress), strict=True):
                rows = self._rows(place, encoder, dict(zip(chunk, states, strict=True)))
            stored: NDArray[Any] = np.empty(0, dtype=encoder.model.state_type)
            chosen = np.array([rows[key] for key in keys], dtype=np.int64)
            if keys:
                stored = np.memmap(place / "states.bin", encoder.model.state_type, "r", shape=(len(rows),))
                _check(place, stored, chosen)
            return np.asarray((stored if field_alone is None else stored[field_alone])[chosen])

    def keep(self, encoder: Encoder, texts: Sequence[str], states: NDArray[np.void]) -> None:
        """Put down the states of texts that were read for another end; those that are there already stay."""
        with self._place(encoder, texts) as place:
            self._rows(place, encoder, dict(zip(map(_key, texts), states, strict=True)))

    @contextmanager
    def _place(self, encoder: Encoder, texts: Sequence[str]) -> Iterator[Path]:
        """The folder of this encoder's states, made where it is missing; what goes wrong in there is one line."""
        shape = f"{encoder.dimension}-{MAX_TOKENS}-{len(encoder.model.layers)}"
        name = encoder.runtime_name(texts)  # another runtime's states are near, not the same
        shape = shape if name == EXACT else f"{shape}-{name}"
        shape = f"{shape}-{encoder.reads}" if encoder.reads else shape
        place = self.folder / f"{encoder.state_fingerprint[:24]}-{encoder.pooling}-{shape}"
        try:
            for folder in (*self._above, self.folder, place):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield place
        except OSError as error:
            reason = f"the hidden-state cache cannot be used ({error.strerror or error})"
            raise FedcarError(f"{place}: {reason}; free space or name another folder with --cache") from error

    def _rows(
        self, place: Path, encoder: Encoder, found: dict[bytes, NDArray[np.void]] | None = None
    ) -> dict[bytes, int]:
        """The keys on disk and their rows, with what was found written behind them; locked only as long as this."""
        with lock_of(place / "lock"):
            known = self._known[place] = _read_keys(place, encoder.model.state_type, self._known.get(place, _Known()))
            new = [key for key in found or {} if key not in known.rows]
            if found and new:
                _append(place, known.whole, new, np.array([found[key] for key in new], dtype=encoder.model.state_type))
                known = self._known[place] = _read_keys(place, encoder.model.state_type, known)
            return known.rows


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _chunks(keys: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


@dataclass
class _Known:
    """The text hashes that were read so far, and their rows; the last of them."""

    rows: dict[bytes, int] = field(default_factory=dict)
    whole: int = 0
    last: bytes = b""


def _read_keys(place: Path, state_type: np.dtype[np.void], known: _Known) -> _Known:
    """The text hashes on disk and their rows; only rows whose states and key are both whole.

    A whole row never changes, so that only those after the last one known are read, as long as it stands there.
    """
    keys, sums, states = place / "keys.sha256", place / "sums.crc32", place / "states.bin"
    if not (keys.is_file() and sums.is_file() and states.is_file()):
        return _Known()
    sizes = {keys: KEY_BYTES, sums: SUM_BYTES, states: state_type.itemsize}
    whole = min(file.stat().st_size // size for file, size in sizes.items())
    with keys.open("rb") as stream:
        stream.seek(max(0, known.whole - 1) * KEY_BYTES)
        if whole < known.whole or stream.read(len(known.last)) != known.last:  # another cache stands here now
            known = _Known()
            stream.seek(0)
        stored = stream.read((whole - known.whole) * KEY_BYTES)
    new = [stored[start : start + KEY_BYTES] for start in range(0, len(stored), KEY_BYTES)]
    known.rows.update(zip(new, range(known.whole, whole), strict=True))
    return _Known(known.rows, whole, new[-1] if new else known.last)


def _check(place: Path, stored: NDArray[np.void], rows: NDArray[np.int64]) -> None:
    """Refuse rows that are not what was written: a disk that forgets, a copy that broke off, a file of other use."""
    sums = np.fromfile(place / "sums.crc32", dtype="<u4")
    if damaged := sum(zlib.crc32(stored[row].tobytes()) != sums[row] for row in rows):
        way_out = f"remove it, and they are encoded again: rm -r {typed_path(place)}"
        raise FedcarError(f"{place}: {damaged} of {len(rows)} hidden states are not what was written; {way_out}")


def _append(place: Path, rows: int, keys: list[bytes], states: NDArray[np.void]) -> None:
    """Write after the first `rows` rows. Keys beyond them go first, so that none outlives its states."""
    _write_from(place / "keys.sha256", rows * KEY_BYTES, b"")
    _write_from(place / "states.bin", rows * states.dtype.itemsize, states.tobytes())
    sums = np.array([zlib.crc32(record.tobytes()) for record in states], dtype="<u4")
    _write_from(place / "sums.crc32", rows * SUM_BYTES, sums.tobytes())
    _write_from(place / "keys.sha256", rows * KEY_BYTES, b"".join(keys))


def _write_from(file: Path, start: int, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as stream:
        stream.truncate(start)
        stream.seek(start)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
