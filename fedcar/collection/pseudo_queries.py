"""Pseudo-queries: what a document says of itself, and questions that a language model would ask of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.collection import Document, normalised
from fedcar.collection.words import sentences

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHT = 0.15  # of a title or sentence, where a question that somebody asked counts 1
MOST_PER_DOCUMENT = 6
MOST_TEXTS = 20_000


@dataclass(frozen=True)
class PseudoQueries:
    """n texts, the document each stands for, and how much of a real question it counts: `weights` (n,)."""

    texts: tuple[str, ...] = ()
    document_ids: tuple[str, ...] = ()
    weights: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, dtype=np.float32))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    def __add__(self, other: PseudoQueries) -> PseudoQueries:
        weights = np.concatenate([self.weights, other.weights])
        return PseudoQueries(self.texts + other.texts, self.document_ids + other.document_ids, weights)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], weight: float) -> PseudoQueries:
        """Pairs of document id and text, all of one weight."""
        listed = list(pairs)
        ids, texts = tuple(pair[0] for pair in listed), tuple(pair[1] for pair in listed)
        return cls(texts, ids, np.full(len(listed), weight, dtype=np.float32))


def pseudo_queries(
    documents: Sequence[Document], seed: int = 0, most_per_document: int = MOST_PER_DOCUMENT, weight: float = WEIGHT
) -> PseudoQueries:
    """Each document's title and a seeded choice of its sentences (the inverse cloze task: Lee et al. 2019).

    At most 20,000 texts in all, at least one a document. A text that several documents have tells none of them apart
    and is left out. What is chosen of a document depends on the seed, its id and how many a document gets.
    """
    texts_of = {document.id: _own_texts(document) for document in documents}
    owners = Counter(key for texts in texts_of.values() for key in texts)
    most = max(1, min(most_per_document, MOST_TEXTS // max(1, len(documents))))
    pairs: list[tuple[str, str]] = []
    for document in documents:
        texts = [text for key, text in texts_of[document.id].items() if owners[key] == 1]
        if len(texts) > most:
            title = int(texts[0] == " ".join(document.title.split()))  # which is always kept
            digest = hashlib.sha256(document.id.encode("utf-8", "surrogatepass")).digest()
            generator = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
            chosen = title + generator.choice(len(texts) - title, most - title, replace=False)
            texts = [*texts[:title], *(texts[place] for place in sorted(chosen))]
        pairs += ((document.id, text) for text in texts)
    return PseudoQueries.of(pairs, weight)


def _own_texts(document: Document) -> dict[str, str]:
    """Title and sentences by normalised text, in order, each once."""
    texts: dict[str, str] = {}
    for part in (document.title, *(document.text[start:end] for start, end in sentences(document.text))):
        if text := " ".join(part.split()):
            texts.setdefault(normalised(text), text)
    return texts
