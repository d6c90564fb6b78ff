"""A bundle's encoder: tokenizer and ONNX file, with what searching asks of an `Encoder` and no torch behind it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.encoder.runtimes.onnx import OnnxRuntime
from fedcar.encoder.runtimes.protocol import (
    TOKENS_PER_BATCH,
    Progress,
    States,
    Tokens,
    TokenStates,
    encoded,
    encoded_tokens,
    state_type,
)
from fedcar.errors import FedcarError, FedcarWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class BundleEncoder:
    """Texts -> the states that the exported encoder gave, to float32's last digits, or near them in eight bits.

    `adapter` says which table the file has besides the untrained one, None where it has none; inside `untrained()` the
    states are those without it. In eight bits every text is run alone: its states would depend on its batch.
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
    _adapted: bool = field(default=True, init=False)
    _last: tuple[bytes, States] | None = field(default=None, init=False)

    @cached_property
    def _runtime(self) -> OnnxRuntime:
        return OnnxRuntime(self.folder / "encoder.onnx")

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - the library has no types
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise FedcarError("tokenizers is not installed; pip install 'fedcar[bundle]'") from error
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @property
    def state_type(self) -> np.dtype[np.void]:
        return state_type(len(self.layers), self.dimension)

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The encoder without its adapter, for as long as the context lasts."""
        before, self._adapted = self._adapted, False
        try:
            yield
        finally:
            self._adapted = before

    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """See `runtime.protocol.Runtime`; the last batch is kept, since a question's states are asked for twice."""
        key = bytes(str(token_ids.shape), "ascii") + token_ids.tobytes() + mask.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._runtime.run(token_ids, mask)
        states = self._last[1]
        if self.adapter is None:
            return states
        half = slice(len(token_ids), None) if self._adapted else slice(len(token_ids))
        return States(*(array[half] for array in states))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Encoder.tokenize`: cut at `max_tokens`, and with an `end` behind where the pooling takes the last."""
        encodings = self._encodings(texts, self.max_tokens - (self.end is not None))
        if cut := sum(bool(encoding.overflowing) for encoding in encodings):
            message = f"{cut} of {len(texts)} texts are longer than {self.max_tokens} tokens and were cut"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        behind = [] if self.end is None else [self.end]
        return [[*encoding.ids, *behind] or [self.padding_id] for encoding in encodings]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> hidden states (n, d), float32, not normalised."""
        hidden_states: NDArray[np.float32] = self.encode_states(texts)["pooled"]
        return hidden_states

    def encode_states(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.void]:
        """Texts -> records (n,) of `state_type`."""
        result = np.empty(len(texts), dtype=self.state_type)
        return encoded(self, self.tokenize(texts), result, self.padding_id, progress, self._tokens_per_batch)

    def token_states(self, texts: Sequence[str], progress: Progress | None = None) -> list[TokenStates]:
        """Texts -> the last hidden states of their tokens, of unit length, float16."""
        encodings = self._encodings(texts, self.max_tokens)
        tokens = [Tokens(encoding.ids, encoding.offsets, encoding.special_tokens_mask) for encoding in encodings]
        return encoded_tokens(self, tokens, self.padding_id, progress, self._tokens_per_batch)

    def _encodings(self, texts: Sequence[str], most: int) -> list[Any]:
        self._tokenizer.enable_truncation(most)
        readable = [text.encode("utf-8", "replace").decode() for text in texts]
        encodings: list[Any] = self._tokenizer.encode_batch(readable)
        return encodings

    @property
    def _tokens_per_batch(self) -> int:
        return TOKENS_PER_BATCH if self.precision == "fp32" else 1
