"""A vocabulary in three arrays, looked up where it lies: a million words need no dict to be read first."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS = ("text", "starts", "numbers")


class StoredWords(Mapping[str, int]):
    """Words and their numbers; a word is found by halving the sorted list.

    Arrays: `text` (bytes,) uint8, the words in UTF-8, sorted; `starts` (n + 1,) where each begins; `numbers` (n,).
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = {name: arrays[name] for name in ARRAYS}
        self._places = range(len(self))

    @classmethod
    def of(cls, words: Sequence[str]) -> StoredWords:
        """Words in the order of their numbers."""
        encoded = [word.encode("utf-8", "surrogatepass") for word in words]
        order = sorted(range(len(words)), key=encoded.__getitem__)
        text = b"".join(encoded[number] for number in order)
        starts = np.cumsum([0, *(len(encoded[number]) for number in order)], dtype=np.int64)
        numbers = np.array(order, dtype=np.int32)
        return cls({"text": np.frombuffer(text, dtype=np.uint8), "starts": starts, "numbers": numbers})

    def __len__(self) -> int:
        """Return how many words there are."""
        return len(self.arrays["numbers"])

    def __iter__(self) -> Iterator[str]:
        """Yield the words in the order of their numbers."""
        for place in np.argsort(self.arrays["numbers"]).tolist():
            yield self._word(place).decode("utf-8", "surrogatepass")

    def __getitem__(self, word: str) -> int:
        """Return the word's number; KeyError where there is no such word."""
        wanted = word.encode("utf-8", "surrogatepass")
        place = bisect_left(self._places, wanted, key=self._word)
        if place == len(self) or self._word(place) != wanted:
            raise KeyError(word)
        return int(self.arrays["numbers"][place])

    def _word(self, place: int) -> bytes:
        first, last = self.arrays["starts"][place : place + 2]
        word: bytes = self.arrays["text"][first:last].tobytes()
        return word
