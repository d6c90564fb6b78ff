"""Evidence: what the frozen encoder and the words say about a question and a document, before anything is learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fedcar.collection.collection import Document
from fedcar.collection.wording import AS_BEFORE, Wording
from fedcar.collection.words import word_count
from fedcar.common.files import write_json
from fedcar.common.progress import Silent
from fedcar.common.tensors import mapped_tensors, read_tensors
from fedcar.common.vectors import top_k, unit
from fedcar.head.rows import products
from fedcar.head.view import View
from fedcar.retriever.late_interaction import LateInteraction
from fedcar.retriever.lexical import LexicalIndex, SentenceCoverage, numbered, relative
from fedcar.retriever.windows import Window, Windows, body_sentences, several, windows_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.reading import TokenStates

CANDIDATES = 100
ALL_ARE_CANDIDATES = 200
LEXICAL_SHARE = 0.2  # of the score that chooses the candidates: hybrid search
SHORT, LONG = 10, 30  # median words of a document: labels, and texts with something to find in them
QUESTIONS_AT_ONCE = 1024
CELLS_AT_ONCE = 1 << 23


class Evidence:
    """What the frozen encoder and the words say about a question and a document, before anything is learned.

    Eight features of a question and a document, each near 0 to 1:
        cosine           of the question's and the document's hidden state, or that of the nearest of its windows
        lexical          BM25 / its maximum for the question, as in hybrid search
        sentence         the best cosine of the question and a sentence of the document (mean of its token states)
        stems            BM25 over word stems / its maximum
        bigrams          BM25 over pairs of neighbouring stems / its maximum
        coverage         the share of the question's stems, by idf, in the best sentence (with the title)
        tokens           each question token's best cosine in the document, or in the best of its windows, averaged by
                         idf (late interaction)
        sentence_tokens  the same within the best sentence
    Documents of a median of ten words or fewer are labels: nothing is read token by token and the three features of
    late interaction are 0 (`deep` is False). All of an empty document is 0. The encoder is always the untrained one.
    Words are those of the documents' language, told when built, whatever is added later (`wording`).
    Where it is hopeless (`hopeless.view_for`) the cosine is that in its `view`, and untrained search goes by words.

    Formal guarantees:
        untrained_evidence_equals_hybrid_for_labels: the default weights then order documents as hybrid search does.
        hopeless_cosines_have_no_say: without training the words alone order the candidates.
        added_document_leaves_the_others_vectors: add and remove change no vector of another document.
    """

    NAMES: ClassVar[tuple[str, ...]] = (
        "cosine",
        "lexical",
        "sentence",
        "stems",
        "bigrams",
        "coverage",
        "tokens",
        "sentence_tokens",
    )
    DEFAULT_WEIGHTS: ClassVar[tuple[float, ...]] = (6.0, 0.0, 6.0, 2.0, 1.0, 3.0, 8.0, 8.0)
    LABEL_WEIGHTS: ClassVar[tuple[float, ...]] = (20.0, 20.0 * LEXICAL_SHARE, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    OF_WORDS: ClassVar[tuple[bool, ...]] = (False, True, False, True, True, True, False, False)

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        indices: Mapping[str, LexicalIndex],
        coverage: SentenceCoverage,
        late: LateInteraction | None,
        wording: Wording = AS_BEFORE,
        windows: Windows | None = None,
        view: View | None = None,
    ) -> None:
        self.embeddings = embeddings
        self.indices = dict(indices)
        self.coverage = coverage
        self.late = late
        self.wording = wording
        self.windows = windows if windows is not None else Windows.none(*embeddings.shape)
        self.view = view

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        encoder: Encoder,
        embeddings: NDArray[np.float32],
        report: Silent | None = None,
        late: LateInteraction | None = None,
        windows: Windows | None = None,
        view: View | None = None,
    ) -> Evidence:
        """Read the documents; `embeddings` (N, d) are their untrained hidden states, or what the view makes of them.

        They have unit length. `late` is what was read of them token by token already, where it was, and `windows` what
        was read in parts.
        """
        texts = [document.full_text for document in documents]
        wording = Wording.of(texts)
        indices = {name: LexicalIndex.build(texts, words) for name, words in wording.vocabularies.items()}
        coverage = SentenceCoverage.build(list(map(_titled_sentences, documents)), indices["stems"])
        if late is None and reads_tokens(documents, encoder):
            late = LateInteraction.build(documents, encoder, report)
        if windows is None:
            windows = _read_windows(windows_of(documents, encoder, report), encoder, view)
        return cls(embeddings, indices, coverage, late, wording, windows, view)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.embeddings)

    @property
    def together(self) -> int:
        """How many candidates are weighed against each other: 100, or all where there are up to 200."""
        return _together(len(self))

    @property
    def vector_count(self) -> int:
        """How many vectors a question is compared with: the documents' and those of their windows."""
        return len(self) + self.windows.number

    @property
    def deep(self) -> bool:
        """Whether the documents were read token by token; chosen when built, whatever is added later."""
        return self.late is not None

    @classmethod
    def default_weights(cls, documents: Sequence[Document], hopeless: bool = False) -> NDArray[np.float32]:
        """Weights (F,) for no training at all: hybrid search for labels, the full mix for texts, between them between.

        By the median number of words of the documents that are not empty: up to 10, from 30. Where the encoder is
        `hopeless` its cosines count nothing, and documents of any length are ordered by the words of the full mix.
        """
        if hopeless:
            return np.where(cls.OF_WORDS, cls.DEFAULT_WEIGHTS, 0.0).astype(np.float32)
        share = np.clip((median_words(documents) - SHORT) / (LONG - SHORT), 0.0, 1.0)
        mixed = share * np.array(cls.DEFAULT_WEIGHTS) + (1 - share) * np.array(cls.LABEL_WEIGHTS)
        weights: NDArray[np.float32] = mixed.astype(np.float32)
        return weights

    # ---------------------------------------------------------------- questions

    def lexical(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """BM25 divided by its maximum for the question: (n, N) in [0, 1]."""
        return self.indices["lexical"].relative_scores(questions)

    def vectors(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """Untrained states (n,) -> what cosines with `embeddings` are taken of: unit vectors (n, d)."""
        return unit(states["pooled"]) if self.view is None else self.view(states)

    def knows(self, question: str) -> bool:
        """Whether any document has a word of the question, or its stem."""
        return any(bool((index.scores([question]) > 0).any()) for index in self.indices.values())

    def cosines(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """What `vectors` gives (n, d) -> the cosine with each document or its nearest window (n, N)."""
        return self.windows.raised(products(vectors, self.embeddings), vectors)

    def candidates(self, cosines: NDArray[np.float32], lexical: NDArray[np.float32], k: int = 0) -> NDArray[np.int64]:
        """The documents worth a closer look (n, c), best hybrid score first: 100, or all where there are up to 200.

        For the `k` best documents as many hundreds as hold so many. In a view the words come first.
        """
        together = _together(cosines.shape[1])
        wanted = -(-max(k, 1) // together) * together
        first, second = (cosines, lexical) if self.view is None else (lexical, cosines)
        return top_k(first + np.float32(LEXICAL_SHARE) * second, min(wanted, cosines.shape[1]))

    def features(
        self,
        questions: Sequence[str],
        hidden_states: NDArray[np.float32],
        candidates: NDArray[np.int64],
        tokens: Sequence[TokenStates] = (),
        vectors: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Questions, their untrained hidden states (n, d) and documents to compare (n, c) -> (n, c, F), float32.

        `tokens` are the questions' untrained token states, needed where the documents were read token by token, and
        `vectors` (n, d) what `vectors` makes of their states, needed where there is a view.
        """
        if vectors is None and self.view is not None:
            raise ValueError("the cosine is that in a view; give what `vectors` makes of the questions' states")
        if self.late is not None and len(tokens) != len(questions):
            raise ValueError(f"{len(questions)} questions with the token states of {len(tokens)}; give those of all")
        result = np.zeros((*candidates.shape, len(self.NAMES)), dtype=np.float32)
        step = at_once(QUESTIONS_AT_ONCE, self.vector_count)
        for start in range(0, len(questions), step):
            part = slice(start, start + step)
            chosen, texts, found = candidates[part], list(questions[part]), result[part]
            states = unit(np.asarray(hidden_states[part], dtype=np.float32))
            compared = states if vectors is None else vectors[part]
            for name, index in self.indices.items():
                found[..., self.NAMES.index(name)] = np.take_along_axis(relative(index.scores(texts)), chosen, axis=1)
            covered = np.take_along_axis(self.coverage.scores(texts), chosen, axis=1)
            found[..., self.NAMES.index("coverage")] = covered
            for row, columns in enumerate(chosen):
                found[row, :, 0] = self.embeddings[columns] @ compared[row]
            if self.windows.number:
                nearest = self.windows.raised(np.full((len(states), len(self)), -np.inf, dtype=np.float32), compared)
                found[..., 0] = np.maximum(found[..., 0], np.take_along_axis(nearest, chosen, axis=1))
            if self.late is not None:
                found[..., _LATE] = self.late.features(states, tokens[part], chosen)
        return result

    def best_window(
        self, question: str, vector: NDArray[np.float32], tokens: TokenStates | None, document: int
    ) -> tuple[int, int] | None:
        """Where in its full text the window of a document stands that answers a question best; None of a single one.

        By the cosine with what `vectors` makes of its state (d,), the share of the question's words and, where the
        documents were read token by token, the token states; each counts alike.
        """
        own = self.windows.places(document)
        if own.start == own.stop:
            return None
        arrays = self.windows.arrays
        fit = arrays["vectors"][own] @ vector + self.coverage.within(question, document, arrays["sentences"][own])
        if self.late is not None and tokens is not None:
            fit = fit + self.late.of_windows(tokens, document)
        start, end = arrays["spans"][own][int(fit.argmax())]
        return int(start), int(end)

    # ---------------------------------------------------------------- documents come and go

    def added(
        self,
        documents: Sequence[Document],
        encoder: Encoder,
        embeddings: NDArray[np.float32],
        report: Silent | None = None,
    ) -> Evidence:
        """With these documents and their embeddings (m, d) behind the others."""
        texts = [document.full_text for document in documents]
        indices = {name: index.added(texts) for name, index in self.indices.items()}
        coverage = self.coverage.added(list(map(_titled_sentences, documents)), indices["stems"])
        parts = windows_of(documents, encoder, report)
        windows = self.windows.added(_read_windows(parts, encoder, self.view))
        late = self.late.added(documents, encoder, report, parts) if self.late is not None else None
        joined = np.concatenate([self.embeddings, np.asarray(embeddings, dtype=np.float32)])
        return Evidence(joined, indices, coverage, late, self.wording, windows, self.view)

    def without(self, rows: Sequence[int]) -> Evidence:
        """Without these documents; what only they had (vectors, words, counts) is gone."""
        indices = {name: index.without(rows) for name, index in self.indices.items()}
        coverage = self.coverage.without(rows, indices["stems"])
        late = self.late.without(rows) if self.late is not None else None
        left = np.delete(self.embeddings, list(rows), axis=0)
        return Evidence(left, indices, coverage, late, self.wording, self.windows.without(rows), self.view)

    # ---------------------------------------------------------------- on disk

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for one safetensors file."""
        parts: dict[str, Mapping[str, NDArray[Any]]] = {name: index.arrays for name, index in self.indices.items()}
        parts |= {"coverage": self.coverage.arrays, "late": self.late.arrays if self.late is not None else {}}
        parts["windows"] = self.windows.arrays
        parts |= {"view": self.view.tensors() if self.view is not None else {}}
        named = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        return {name: np.ascontiguousarray(array) for name, array in (named | {"embeddings": self.embeddings}).items()}

    def vocabularies(self) -> dict[str, list[str]]:
        """The words of each index in the order of their numbers, for one json file."""
        return {name: list(index.vocabulary) for name, index in self.indices.items()}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, NDArray[Any]],
        vocabularies: Mapping[str, Sequence[str] | Mapping[str, int]],
        wording: Wording = AS_BEFORE,
    ) -> Evidence:
        """What `tensors` and `vocabularies` gave; the arrays are taken as they are, memory-mapped ones too."""

        def part(name: str) -> dict[str, NDArray[Any]]:
            prefix = f"{name}."
            return {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}

        indices = {
            name: LexicalIndex(numbered(vocabularies[name]), part(name), words)
            for name, words in wording.vocabularies.items()
        }
        coverage = SentenceCoverage(indices["stems"], part("coverage"))
        late = LateInteraction(part("late")) if part("late") else None
        windows = Windows(part("windows")) if part("windows") else None  # a retriever saved before there were any
        view = View.from_tensors(part("view")) if part("view") else None
        return cls(tensors["embeddings"], indices, coverage, late, wording, windows, view)

    def write(self, folder: Path) -> None:
        """Write evidence.safetensors and words.json into the folder."""
        from safetensors.numpy import save_file

        save_file(self.tensors(), folder / "evidence.safetensors")
        write_json(folder / "words.json", self.vocabularies() | {"wording": asdict(self.wording)})

    @classmethod
    def read(cls, folder: Path, mapped: bool = False) -> Evidence:
        """What `write` wrote; with `mapped` arrays are read from the file when they are first needed."""
        tensors = (mapped_tensors if mapped else read_tensors)(folder / "evidence.safetensors")
        words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return cls.from_tensors(tensors, words, Wording(**words.get("wording", {})))  # none before there were several


_LATE = [Evidence.NAMES.index(name) for name in ("sentence", "tokens", "sentence_tokens")]


def _together(documents: int) -> int:
    return max(1, documents) if documents <= ALL_ARE_CANDIDATES else CANDIDATES


def at_once(questions: int, documents: int) -> int:
    """So many questions, or fewer where there are so many documents that their scores would fill the memory."""
    return max(1, min(questions, CELLS_AT_ONCE // max(1, documents)))


def reads_tokens(documents: Sequence[Document], encoder: Encoder) -> bool:
    """Whether the documents are texts to be read token by token: no labels, and the tokenizer knows the places."""
    return median_words(documents) > SHORT and bool(encoder.tokenizer.is_fast)


def median_words(documents: Sequence[Document]) -> float:
    """The median number of words of the documents that are not empty; 0 without any."""
    counts = [word_count(text) for document in documents if (text := document.full_text)]
    return float(np.median(counts)) if counts else 0.0


def _read_windows(parts: Sequence[Sequence[Window]], encoder: Encoder, view: View | None) -> Windows:
    with encoder.model.cutting():
        states = encoder.untrained.for_documents.encode_states([window.text for window in several(parts)])
    return Windows.of(parts, states["pooled"] if view is None else view(states))


def _titled_sentences(document: Document) -> list[str]:
    """The sentences of a document's text, each with the title in front."""
    full = document.full_text
    title = f"{document.title} " if document.title.strip() and document.text.strip() else ""
    return [title + full[start:end] for start, end in body_sentences(document)]
