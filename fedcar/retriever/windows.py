"""Windows: how a document that is longer than the encoder takes is read in parts, all of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcar.collection.collection import Document
from fedcar.collection.words import sentences
from fedcar.common.progress import Silent
from fedcar.common.vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.model import FrozenModel

MOST_WINDOWS = 1024  # of a document; about 200,000 tokens of an encoder that takes 256
OVERLAP = 4  # the part of a window, one in so many, that is read again in the next one, at most
TITLE = 4  # the part of a window that the title may take
SPARE = 2  # tokens: a text that is cut out may make one more than within its document
CHARACTERS_AT_ONCE = 1 << 17
PARTS = ("spans", "sentences", "vectors")


class Window(NamedTuple):
    """A part of a document: the text to read, and where what is read of it stands in the full text.

    The full text from `start` to `end` stands behind the first `before` characters of `text`, which are the title.
    `sentences` are the first of the document's sentences in it and the one behind the last.
    """

    text: str
    start: int
    end: int
    before: int = 0
    sentences: tuple[int, int] = (0, 1)


class Windows:
    """The windows of N documents; a document that the encoder takes whole has none of its own here.

    Held as plain arrays:
        starts (N + 1,) where each document's windows begin; spans (W, 2) where each stands in the full text,
        sentences (W, 2) the first of its document's sentences in it and the one behind the last
        vectors (W, d) their hidden states, of unit length, the first being that of the document's beginning

    Formal guarantees:
        every_part_of_a_document_is_read: its windows leave no character out, up to MOST_WINDOWS of them.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = dict(arrays)

    @classmethod
    def of(cls, parts: Sequence[Sequence[Window]], vectors: NDArray[np.float32]) -> Windows:
        """The windows of each document, and the hidden states (W, d) of those that `several` gives."""
        sizes = [len(windows) if len(windows) > 1 else 0 for windows in parts]
        listed = [(*window[1:3], *window.sentences) for window in several(parts)]
        numbers = np.array(listed, dtype=np.int64).reshape(-1, 4)
        starts = np.cumsum([0, *sizes], dtype=np.int64)
        return cls({"starts": starts, "spans": numbers[:, :2], "sentences": numbers[:, 2:], "vectors": unit(vectors)})

    @classmethod
    def none(cls, documents: int, dimension: int) -> Windows:
        """For so many documents that are all read in one."""
        return cls.of([()] * documents, np.zeros((0, dimension), dtype=np.float32))

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.arrays["starts"]) - 1

    @property
    def number(self) -> int:
        """How many windows there are in all."""
        return len(self.arrays["spans"])

    @cached_property
    def long(self) -> NDArray[np.int64]:
        """The documents that have several windows (m,), ascending."""
        return np.flatnonzero(np.diff(self.arrays["starts"]))

    def places(self, document: int) -> slice:
        """Where a document's windows stand."""
        return slice(*map(int, self.arrays["starts"][document : document + 2]))

    def best(self, hidden_states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states (n, d) -> the cosine of the nearest window of each of the `long` documents (n, m)."""
        if not self.number:
            return np.zeros((len(hidden_states), 0), dtype=np.float32)
        cosines = hidden_states @ self.arrays["vectors"].T
        result: NDArray[np.float32] = np.maximum.reduceat(cosines, self.arrays["starts"][self.long], axis=1)
        return result

    def raised(self, cosines: NDArray[np.float32], hidden_states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines (n, N) of hidden states (n, d) with the documents' beginnings, those of `long` ones with the best."""
        if self.number:
            cosines[:, self.long] = np.maximum(cosines[:, self.long], self.best(hidden_states))
        return cosines

    def added(self, new: Windows) -> Windows:
        """With the other documents behind these."""
        ours, theirs = self.arrays, new.arrays
        arrays = {name: np.concatenate([ours[name], theirs[name]]) for name in PARTS}
        return Windows(arrays | {"starts": np.concatenate([ours["starts"], ours["starts"][-1] + theirs["starts"][1:]])})

    def without(self, rows: Sequence[int]) -> Windows:
        """Without these documents."""
        sizes = np.diff(self.arrays["starts"])
        kept = np.ones(len(sizes), dtype=bool)
        kept[list(rows)] = False
        own = np.repeat(kept, sizes)
        arrays = {name: self.arrays[name][own] for name in PARTS}
        return Windows(arrays | {"starts": np.concatenate([[0], np.cumsum(sizes[kept])])})


def windows_of(documents: Sequence[Document], encoder: Encoder, report: Silent | None = None) -> list[list[Window]]:
    """Each document as the windows that are read of it, in order; one, its full text, where the encoder takes it whole.

    The first window is the full text as the encoder cuts it. The others begin and end at sentence borders where they
    can, have the title in front, and each reads up to a quarter of the one before it again. One line says how many
    documents are read so, and one how many are longer than MOST_WINDOWS windows.
    """
    model, prompt = encoder.model, encoder.for_documents.prompt
    texts = [document.full_text for document in documents]
    too_long = model.too_long(texts, prompt)
    found = [
        _windows(document, model, model.room(prompt)) if cut else [Window(text, 0, len(text))]
        for document, text, cut in zip(documents, texts, too_long, strict=True)
    ]
    report = report or Silent()
    if read := sum(len(windows) for windows in found if len(windows) > 1):
        report.say(
            f"{int(too_long.sum())} of {len(texts)} documents are longer than {model.max_tokens} tokens: "
            f"all of them is read, in {read:,} windows"
        )
    if over := sum(windows[-1].end < len(text) for windows, text in zip(found, texts, strict=True)):
        report.say(
            f"{over} of {len(texts)} documents are longer than {MOST_WINDOWS:,} windows of {model.max_tokens} tokens: "
            "of what is beyond only the words are read"
        )
    return found


def several(parts: Iterable[Sequence[Window]]) -> list[Window]:
    """All windows of the documents that have more than one."""
    return [window for windows in parts if len(windows) > 1 for window in windows]


def _windows(document: Document, model: FrozenModel, first_room: int) -> list[Window]:
    full = document.full_text
    title = full[: body_start(document)]
    if (of_title := len(model.places(title))) > first_room // TITLE:
        title, of_title = "", 0
    room = max(2, first_room - of_title - SPARE)
    places = _places(full, model, first_room + MOST_WINDOWS * room)
    begins = np.array([start for start, _ in body_sentences(document)])
    borders = np.searchsorted(places[:, 0], begins)
    ends = np.append(places[:, 0], len(full))
    windows = []
    for number, (first, last) in enumerate(_cut(np.unique(borders), len(places), first_room, room)):
        start, end = (int(ends[first]) if number else 0), int(ends[last])
        before = title if number and start >= len(title) else ""
        first_sentence = max(0, int(np.searchsorted(begins, start, side="right")) - 1)
        sentences_in = first_sentence, max(first_sentence + 1, int(np.searchsorted(begins, end)))
        text = before + full[start:end] if number else full
        windows.append(Window(text, start, end, len(before), sentences_in))
        if len(windows) == MOST_WINDOWS:
            break
    return windows


def _places(text: str, model: FrozenModel, most: int) -> NDArray[np.int64]:
    """Where the text's tokens begin and end (t, 2), read in parts until there are `most`."""
    found, tokens, start = [np.zeros((0, 2), dtype=np.int64)], 0, 0
    while start < len(text) and tokens < most:
        end = min(start + CHARACTERS_AT_ONCE, len(text))
        if end < len(text):
            blank = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
            end = blank + 1 if blank > 0 else end
        part = model.places(text[start:end])
        found.append(part[part[:, 1] > part[:, 0]] + start)
        tokens, start = tokens + len(part), end
    return np.concatenate(found)


def _cut(borders: NDArray[np.int64], tokens: int, first_room: int, room: int) -> Iterator[tuple[int, int]]:
    """Windows as first and last token; `borders` are tokens that begin a sentence, ascending."""
    start, size = 0, first_room
    while start + size < tokens:
        full = start + size
        ends = borders[(borders > start + size // 2) & (borders <= full)]
        end = int(ends[-1]) if len(ends) else full
        yield start, end
        again = borders[(borders >= end - size // OVERLAP) & (borders <= end)]
        start, size = (int(again[0]) if len(again) else end - size // OVERLAP), room
    yield start, tokens


def body_start(document: Document) -> int:
    """Where in the full text a document's text begins; 0 where it has none."""
    full, text = document.full_text, document.text
    return len(full) - len(text) if text.strip() and full.endswith(text) else 0


def body_sentences(document: Document) -> list[tuple[int, int]]:
    """Where in the full text the sentences of a document's text stand; of its title where it has no text."""
    start = body_start(document)
    return [(start + first, start + last) for first, last in sentences(document.full_text[start:])]
