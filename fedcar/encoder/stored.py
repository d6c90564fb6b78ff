"""A stored encoder: tokenizer and ONNX file, with what searching asks of an `Encoder` and no torch behind it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.encoder.reading import (
    TOKENS_PER_BATCH,
    Reading,
    Tokens,
    all_unknown,
    behind_prompt,
    joined,
    read,
    state_type,
)
from fedcar.encoder.runtimes.onnx import OnnxRuntime
from fedcar.errors import FedcarError, FedcarWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray


MODEL, TOKENIZER = "encoder.onnx", "tokenizer.json"


@dataclass
class StoredEncoder:
    """Texts -> the states of the encoder it was written from, to float32's last digits, or near them in eight bits.

    `adapter` says which table the file has besides the untrained one, None where it has none: the file then gives each
    batch untrained and adapted. In eight bits every text is run alone: its states would depend on its batch.
    """

    folder: Path
    pooling: str
    precision: str
    dimension: int
    layers: tuple[int, ...]
    max_tokens: int
    padding_id: int
    end: int | None
    adapter: str | None
    unknown_id: int | None = None
    width: int | None = None  # of a token's state, where it is not that of a text's vector
    prompt: str = ""
    left_out: int = 0  # tokens of the prompt that are read and not pooled
    prefix: str = ""  # of its files' names
    beside: StoredEncoder | None = None  # a second one, whose states are joined to a question's; see `Both`

    @classmethod
    def of(cls, folder: Path, settings: Mapping[str, Any]) -> StoredEncoder:
        """The files of a folder, with the settings that `stored_writing.write_encoder` gave."""
        second = settings.get("beside")
        beside = None if second is None else cls.of(folder, second)
        return cls(folder, **{**settings, "layers": tuple(settings["layers"]), "beside": beside})

    def open(self) -> None:
        """Read its files now, not when the first text comes: by then somebody may have replaced them."""
        _ = self._runtime, self._tokenizer
        if self.beside is not None:
            self.beside.open()

    def lies_in(self, folder: Path) -> None:
        """A copy finds the files there, where they were put after they were opened."""
        self.folder = folder
        if self.beside is not None:
            self.beside.folder = folder

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process needs; it opens the files anew."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @cached_property
    def _runtime(self) -> OnnxRuntime:
        return OnnxRuntime(self.folder / f"{self.prefix}{MODEL}")

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - the library has no types
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise FedcarError("tokenizers is not installed; pip install 'fedcar[bundle]'") from error
        tokenizer = Tokenizer.from_file(str(self.folder / f"{self.prefix}{TOKENIZER}"))
        tokenizer.enable_truncation(self.max_tokens - (self.end is not None))
        return tokenizer

    @property
    def state_type(self) -> np.dtype[np.void]:
        return state_type(len(self.layers), self.dimension, self.width)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Encoder.tokenize`: cut at `max_tokens`, and with an `end` behind where the pooling takes the last."""
        return [list(row.ids) or [self.padding_id] for row in self._rows(texts)]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> hidden states (n, d), float32, not normalised."""
        return self._read_alone(texts, tokens=False).adapted

    def read(self, texts: Sequence[str], tokens: bool = True) -> Reading:
        """As `Encoder.read`: everything that searching asks of questions, by one pass, or one of each encoder."""
        reading = self._read_alone(texts, tokens)
        if self.beside is None:
            return reading
        return reading._replace(states=joined(reading.states, self.beside.read(texts, tokens=False).states))

    def _read_alone(self, texts: Sequence[str], tokens: bool) -> Reading:
        rows = self._rows(texts)
        size = TOKENS_PER_BATCH if self.precision == "fp32" else 1
        return read(
            self._runtime, rows, self.state_type, self.padding_id, None, size, tokens=tokens, left_out=self.left_out
        )

    def unknown(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """As `Encoder.unknown`: which texts hold nothing that the tokenizer knows."""
        if self.unknown_id is None:
            return np.zeros(len(texts), dtype=bool)
        encodings = self._tokenizer.encode_batch(list(map(_readable, texts)), add_special_tokens=False)
        return all_unknown((encoding.ids for encoding in encodings), self.unknown_id)

    def _rows(self, texts: Sequence[str]) -> list[Tokens]:
        behind = [] if self.end is None else [self.end]
        return [
            behind_prompt(
                Tokens(
                    [*encoding.ids, *behind],
                    [*encoding.offsets, *((0, 0) for _ in behind)],
                    [*encoding.special_tokens_mask, *(1 for _ in behind)],
                ),
                len(self.prompt),
            )
            for encoding in self._cut(texts)
        ]

    def _cut(self, texts: Sequence[str]) -> list[Any]:
        encodings: list[Any] = self._tokenizer.encode_batch([self.prompt + _readable(text) for text in texts])
        if cut := sum(bool(encoding.overflowing) for encoding in encodings):
            message = f"{cut} of {len(texts)} texts are longer than {self.max_tokens} tokens and were cut"
            warnings.warn(message, FedcarWarning, stacklevel=3)
        return encodings


def _readable(text: str) -> str:
    """Half of a surrogate pair is no text."""
    return text.encode("utf-8", "replace").decode()
