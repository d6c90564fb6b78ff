"""Late interaction: each token of a question with the tokens and sentences of a document, kept small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcar.collection.collection import Document
from fedcar.common.progress import Silent
from fedcar.common.vectors import unit
from fedcar.encoder.reading import TokenStates
from fedcar.retriever.lexical import inverse_document_frequencies
from fedcar.retriever.windows import Window, body_sentences, windows_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.encoder import Encoder

Keep = Callable[[Sequence[str], "NDArray[np.void]"], None]
WIDTH = 96
BASIS_TOKENS = 30_000
DOCUMENTS_AT_ONCE = 256
QUESTION_TOKENS = 64  # of a longer question those of the highest idf are compared
QUESTION_TOKENS_AT_ONCE = 8192
CELLS_AT_ONCE = QUESTION_TOKENS_AT_ONCE << 10  # cosines of question tokens with those of a document
TOKENS_AT_ONCE = 1 << 17  # of documents side by side
LEVELS = 7  # of four bits: -7 to 7
TURNED_REACH = 2.4  # standard deviations of an entry, which after the turn is about normal: least error at four bits
FEATURES = ("sentence", "tokens", "sentence_tokens")


class LateInteraction:
    """The token states of N documents in four bits, and their sentence vectors in eight.

    ColBERT (Khattab and Zaharia 2020) over a frozen encoder, with an idf weight for each token of the question. Token
    states are projected onto the `WIDTH` main directions of the documents' own, turned so that every direction carries
    about as much; cosines are taken in there. A collection of few tokens tells no directions: its states keep their
    full width, also when documents are added to it.

    Held as plain arrays:
        tokens (T, width / 2) uint8, two entries a byte; token_starts (S + 1,) where each sentence's begin
        sentences (S, d) int8, the mean of a sentence's states; sentence_starts (N + 1,) where each document's begin
        ids, id_starts (N + 1,) the distinct token ids of each document; basis (d, width), or (d, 0) at full width
        windows (W, 2) the first of its document's sentences and the one behind the last, window_starts (N + 1,) where
            each document's begin; a document that the encoder takes whole has none
        own_mean (1,), only where something follows the encoder's pooling, so that its vectors are not among its
            tokens' states: a question is then compared with sentences by the mean of its own tokens
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = dict(arrays)
        if "windows" not in self.arrays:  # of a retriever saved before there were any
            starts = np.zeros(len(self) + 1, dtype=np.int64)
            self.arrays |= {"windows": np.zeros((0, 2), dtype=np.int32), "window_starts": starts}
        found = np.append(np.bincount(self.arrays["ids"]), 0)  # the last for what no document has
        self._weights = inverse_document_frequencies(found, len(self))

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.arrays["sentence_starts"]) - 1

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        encoder: Encoder,
        report: Silent | None = None,
        keep: Keep | None = None,
        windows: Sequence[Sequence[Window]] | None = None,
    ) -> LateInteraction:
        """Read all documents with the untrained encoder. The basis comes from a seeded choice of them.

        `keep` is given the texts' states (records of `FrozenModel.state_type`), which the same passes make, part by
        part. `windows` are those of the documents, where they are known.
        """
        windows = windows_of(documents, encoder) if windows is None else windows
        order = np.random.default_rng(0).permutation(len(documents)).tolist()
        chosen = [documents[row] for row in order], [windows[row] for row in order]
        read = zip(order, _read(*chosen, encoder, report or Silent(), keep), strict=True)
        waiting: list[tuple[int, _Read]] = []
        tokens = 0
        for row, document in read:
            waiting.append((row, document))
            tokens += len(document.states)
            if tokens >= BASIS_TOKENS:
                break
        basis = np.zeros((encoder.width, 0), dtype=np.float32)
        if tokens >= BASIS_TOKENS and encoder.width > WIDTH:
            basis = main_directions(np.concatenate([document.states for _, document in waiting]), WIDTH)
        parts = {row: _packed(document, basis) for row, document in waiting}
        waiting.clear()
        parts |= {row: _packed(document, basis) for row, document in read}
        arrays = _assembled([parts[row] for row in range(len(documents))], basis)
        if encoder.model.pooler.is_elsewhere:
            arrays["own_mean"] = np.ones(1, dtype=np.uint8)
        return cls(arrays)

    def added(
        self,
        documents: Sequence[Document],
        encoder: Encoder,
        report: Silent | None = None,
        windows: Sequence[Sequence[Window]] | None = None,
    ) -> LateInteraction:
        """With these documents behind the others, which stay as they are."""
        basis = self.arrays["basis"]
        windows = windows_of(documents, encoder) if windows is None else windows
        read = _read(documents, windows, encoder, report or Silent())
        new = _assembled([_packed(document, basis) for document in read], basis)
        arrays = {"basis": basis, **self._own_mean}
        for name in ("tokens", "sentences", "ids", "windows"):
            arrays[name] = np.concatenate([self.arrays[name], new[name]])
        for name in ("token_starts", "sentence_starts", "id_starts", "window_starts"):
            arrays[name] = np.concatenate([self.arrays[name], self.arrays[name][-1] + new[name][1:]])
        return LateInteraction(arrays)

    def without(self, rows: Sequence[int]) -> LateInteraction:
        """Without these documents."""
        kept = np.ones(len(self), dtype=bool)
        kept[list(rows)] = False
        ids, id_starts = _kept(kept, self.arrays["id_starts"])
        sentence, sentence_starts = _kept(kept, self.arrays["sentence_starts"])
        token, token_starts = _kept(sentence, self.arrays["token_starts"])
        window, window_starts = _kept(kept, self.arrays["window_starts"])
        return LateInteraction(
            {
                "basis": self.arrays["basis"],
                **self._own_mean,
                "ids": self.arrays["ids"][ids],
                "id_starts": id_starts,
                "sentences": self.arrays["sentences"][sentence],
                "sentence_starts": sentence_starts,
                "tokens": self.arrays["tokens"][token],
                "token_starts": token_starts,
                "windows": self.arrays["windows"][window],
                "window_starts": window_starts,
            }
        )

    def features(
        self, hidden_states: NDArray[np.float32], questions: Sequence[TokenStates], candidates: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Questions as hidden states (n, d) and token states, and documents to compare (n, c) -> (n, c, 3).

        sentence: the best cosine of the question and a sentence. tokens: of each token of the question the best cosine
        in the document, or in the best of its windows, averaged by idf. sentence_tokens: the same within the best
        sentence. 0 for a document without tokens, the last two also for a question without. Of a long question its 64
        tokens of the highest idf count.
        """
        result = np.zeros((*candidates.shape, len(FEATURES)), dtype=np.float32)
        asked = _Asked.of(questions, self)
        if self._own_mean:
            hidden_states = np.stack([one.states.astype(np.float32).sum(axis=0) for one in questions])
        hidden_states = unit(hidden_states)
        if len(questions) == 1:
            return self._of_one(hidden_states[0], asked, candidates[0])[None]
        for document, rows, places in _by_document(candidates):
            sentence_starts = self.arrays["sentence_starts"]
            first, last = int(sentence_starts[document]), int(sentence_starts[document + 1])
            if first == last:
                continue
            vectors = unit(self.arrays["sentences"][first:last].astype(np.float32))
            result[rows, places, 0] = (hidden_states[rows] @ vectors.T).max(axis=1)
            starts = self.arrays["token_starts"][first : last + 1]
            tokens = unpacked(self.arrays["tokens"][starts[0] : starts[-1]], self.width)
            starts = (starts[:-1] - starts[0]).astype(np.int64)
            windows = self.windows_of(document)
            for part in asked.parts(rows, len(tokens)):
                result[rows[part], places[part], 1:] = asked.compared(rows[part], tokens, starts, windows)
        return result

    def _of_one(
        self, hidden_state: NDArray[np.float32], asked: _Asked, candidates: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """`features` of one question (c, 3): documents side by side, where one after another takes longer."""
        result = np.zeros((len(candidates), len(FEATURES)), dtype=np.float32)
        first, last = (self.arrays["sentence_starts"][candidates + more].astype(np.int64) for more in (0, 1))
        read = np.flatnonzero(last > first)
        if not len(read):
            return result
        starts = self.arrays["token_starts"]
        tokens = np.cumsum(starts[last[read]].astype(np.int64) - starts[first[read]].astype(np.int64))
        for part in np.split(read, np.flatnonzero(np.diff(tokens // TOKENS_AT_ONCE)) + 1):
            ranges = list(zip(first[part].tolist(), last[part].tolist(), strict=True))
            result[part] = self._side_by_side(hidden_state, asked, candidates[part], ranges)
        return result

    def _side_by_side(
        self,
        hidden_state: NDArray[np.float32],
        asked: _Asked,
        documents: NDArray[np.int64],
        ranges: Sequence[tuple[int, int]],
    ) -> NDArray[np.float32]:
        """`features` of one question and documents (c,) whose sentences stand in these ranges."""
        result = np.zeros((len(documents), len(FEATURES)), dtype=np.float32)
        sentences = np.array([end - start for start, end in ranges])
        begins = np.cumsum(sentences) - sentences
        vectors = unit(np.concatenate([self.arrays["sentences"][start:end] for start, end in ranges], dtype=np.float32))
        result[:, 0] = np.maximum.reduceat(vectors @ hidden_state, begins)
        if not len(asked.states):
            return result
        starts = self.arrays["token_starts"].astype(np.int64)
        stored = [self.arrays["tokens"][starts[start] : starts[end]] for start, end in ranges]
        sizes = np.concatenate([np.diff(starts[start : end + 1]) for start, end in ranges])
        cosines = asked.states @ unpacked(np.concatenate(stored), self.width).T
        best = np.maximum.reduceat(cosines, np.cumsum(sizes) - sizes, axis=1)  # (question tokens, sentences)
        result[:, 1] = asked.weights @ np.maximum.reduceat(best, begins, axis=1)
        result[:, 2] = np.maximum.reduceat(asked.weights @ best, begins)
        for place, document in enumerate(documents.tolist()):
            if len(windows := self.windows_of(document)):
                own = best[:, begins[place] : begins[place] + sentences[place]]
                result[place, 1] = (asked.weights @ _best_within(own, windows)).max()
        return result

    def windows_of(self, document: int) -> NDArray[np.int64]:
        """The sentences of a document's windows (w, 2), the first and the one behind the last; none of a single one."""
        first, last = self.arrays["window_starts"][document : document + 2]
        return self.arrays["windows"][first:last].astype(np.int64)

    def of_windows(self, question: TokenStates, document: int) -> NDArray[np.float32]:
        """What `tokens` is the best of: how well each window of a document answers the question (w,)."""
        windows, asked = self.windows_of(document), _Asked.of([question], self)
        first, last = self.arrays["sentence_starts"][document : document + 2]
        starts = self.arrays["token_starts"][first : last + 1].astype(np.int64)
        if not len(asked.states) or not len(windows):
            return np.zeros(len(windows), dtype=np.float32)
        cosines = asked.states @ unpacked(self.arrays["tokens"][starts[0] : starts[-1]], self.width).T
        best = np.maximum.reduceat(cosines, starts[:-1] - starts[0], axis=1)
        result: NDArray[np.float32] = asked.weights @ _best_within(best, windows)
        return result

    @property
    def _own_mean(self) -> dict[str, NDArray[Any]]:
        return {name: array for name, array in self.arrays.items() if name == "own_mean"}

    @property
    def width(self) -> int:
        """The number of entries of a stored token state."""
        directions, width = self.arrays["basis"].shape
        return int(width or directions)

    def projected(self, states: NDArray[Any]) -> NDArray[np.float32]:
        """States (t, d) as they are compared: unit vectors (t, width)."""
        return _projected(states, self.arrays["basis"])

    def weights(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The idf of token ids; one that no document has weighs most."""
        return self._weights[np.minimum(ids, len(self._weights) - 1)]


class _Asked(NamedTuple):
    """The m tokens of n questions: states (m, width), weights (m,) of sum 1 a question, starts and lengths (n,)."""

    states: NDArray[np.float32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, questions: Sequence[TokenStates], late: LateInteraction) -> _Asked:
        idf = [late.weights(question.ids) for question in questions]
        chosen = [np.sort(np.argsort(-found, kind="stable")[:QUESTION_TOKENS]) for found in idf]
        lengths = np.array(list(map(len, chosen)), dtype=np.int64)
        states = [late.projected(one.states[places]) for one, places in zip(questions, chosen, strict=True)]
        weights = [(of := found[at]) / max(float(of.sum()), 1e-9) for found, at in zip(idf, chosen, strict=True)]
        starts = np.cumsum(lengths) - lengths
        return cls(np.concatenate(states), np.concatenate(weights), starts, lengths)

    def parts(self, rows: NDArray[np.int64], tokens: int) -> Iterator[NDArray[np.int64]]:
        """Places in `rows` of questions with tokens, in parts that a document of so many tokens is compared with."""
        places = np.flatnonzero(self.lengths[rows])
        if len(places):
            most = max(1, min(QUESTION_TOKENS_AT_ONCE, CELLS_AT_ONCE // max(1, tokens)))
            number = np.cumsum(self.lengths[rows[places]]) // most
            yield from np.split(places, np.flatnonzero(np.diff(number)) + 1)

    def compared(
        self,
        rows: NDArray[np.int64],
        tokens: NDArray[np.float32],
        sentence_starts: NDArray[np.int64],
        windows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """These questions and one document's tokens (t, width) -> `tokens` and `sentence_tokens` (rows, 2)."""
        lengths = self.lengths[rows]
        own = np.cumsum(lengths) - lengths
        index = np.repeat(self.starts[rows] - own, lengths) + np.arange(lengths.sum())
        cosines = self.states[index] @ tokens.T
        best = np.maximum.reduceat(cosines, sentence_starts, axis=1)  # (question tokens, sentences)
        weights = self.weights[index]
        if len(windows):
            anywhere = np.add.reduceat(_best_within(best, windows) * weights[:, None], own, axis=0).max(axis=1)
        else:
            anywhere = np.add.reduceat(best.max(axis=1) * weights, own)
        together = np.add.reduceat(best * weights[:, None], own, axis=0).max(axis=1)
        return np.stack([anywhere, together], axis=1)


def _best_within(best: NDArray[np.float32], windows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The best of each sentence (m, S) and windows of sentences (w, 2) -> the best of each window (m, w)."""
    if not best.shape[1]:
        return np.zeros((len(best), len(windows)), dtype=np.float32)
    behind = np.concatenate([best, best[:, :1]], axis=1)  # so that a window may end with the last sentence
    result: NDArray[np.float32] = np.maximum.reduceat(behind, windows.ravel(), axis=1)[:, ::2]
    return result


class _Read(NamedTuple):
    """A document as the encoder reads it, token by token, in the order of its sentences."""

    states: NDArray[np.float32]
    sizes: NDArray[np.int64]  # tokens a sentence
    sentences: NDArray[np.float32]
    ids: NDArray[np.int64]
    windows: NDArray[np.int64]  # (w, 2) the first sentence of each and the one behind its last; none of a single one


def _read(
    documents: Sequence[Document],
    parts: Sequence[Sequence[Window]],
    encoder: Encoder,
    report: Silent,
    keep: Keep | None = None,
) -> Iterator[_Read]:
    encoder = encoder.untrained.for_documents
    texts = [window.text for windows in parts for window in windows]
    with report.track("reading the documents' tokens", len(texts)) as advance:
        at_once = [texts[start : start + DOCUMENTS_AT_ONCE] for start in range(0, len(texts), DOCUMENTS_AT_ONCE)]
        if keep is None:
            read: Iterator[Sequence[TokenStates]] = (encoder.token_states(part, advance) for part in at_once)
        else:
            read = _read_and_kept(at_once, encoder, advance, keep)
        tokens = chain.from_iterable(read)
        for document, windows in zip(documents, parts, strict=True):
            yield _by_sentence(document, windows, list(islice(tokens, len(windows))))


def _read_and_kept(
    parts: Sequence[Sequence[str]], encoder: Encoder, advance: Callable[[int], None], keep: Keep
) -> Iterator[Sequence[TokenStates]]:
    for part, (states, tokens) in zip(parts, encoder.read_parts(parts, advance), strict=True):
        keep(part, states)
        yield tokens


def _by_sentence(document: Document, windows: Sequence[Window], read: Sequence[TokenStates]) -> _Read:
    """Tokens of the title belong to the first sentence, but not to its vector."""
    tokens = read[0] if len(windows) == 1 else _joined(windows, read)
    states = unit(tokens.states.astype(np.float32))
    starts = np.array([start for start, _ in body_sentences(document)])
    place = np.searchsorted(starts, tokens.offsets[:, 1] - 1, side="right") - 1
    sentence = np.maximum(place, 0)
    order = np.argsort(sentence, kind="stable")
    present, sizes = np.unique(sentence, return_counts=True)
    sums = np.zeros((len(present), states.shape[1]), dtype=np.float32)
    np.add.at(sums, np.searchsorted(present, sentence[place >= 0]), states[place >= 0])
    sums[~sums.any(axis=1)] = states.sum(axis=0)
    of_windows = np.zeros((0, 2), dtype=np.int64)
    if len(windows) > 1:
        of_windows = np.searchsorted(present, [window.sentences for window in windows])
        of_windows[:, 0] = np.minimum(of_windows[:, 0], len(present) - 1)
        of_windows[:, 1] = np.maximum(of_windows[:, 1], of_windows[:, 0] + 1)
    return _Read(states[order], sizes, unit(sums), np.unique(tokens.ids), of_windows)


def _joined(windows: Sequence[Window], read: Sequence[TokenStates]) -> TokenStates:
    """The tokens of a document from its windows, those that two windows hold from the first of them."""
    parts, read_to = [], 0
    for window, tokens in zip(windows, read, strict=True):
        offsets = tokens.offsets + (window.start - window.before)
        new = (tokens.offsets[:, 1] > window.before) & (offsets[:, 1] > read_to) & (offsets[:, 1] <= window.end)
        parts.append(TokenStates(tokens.ids[new], offsets[new], tokens.states[new]))
        read_to = window.end
    return TokenStates(*map(np.concatenate, zip(*parts, strict=True)))


class _Packed(NamedTuple):
    """A document as it is kept."""

    tokens: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    sentences: NDArray[np.int8]
    ids: NDArray[np.int32]
    windows: NDArray[np.int32]


def _packed(document: _Read, basis: NDArray[np.float32]) -> _Packed:
    sentence_scale = 127 / np.maximum(np.abs(document.sentences).max(axis=1, keepdims=True, initial=0), 1e-9)
    reach = TURNED_REACH / np.sqrt(basis.shape[1]) if basis.shape[1] else np.inf
    return _Packed(
        packed(_projected(document.states, basis), reach),
        document.sizes,
        np.round(document.sentences * sentence_scale).astype(np.int8),
        document.ids.astype(np.int32),
        document.windows.astype(np.int32),
    )


def _assembled(parts: Sequence[_Packed], basis: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    d, width = basis.shape
    return {
        "basis": basis,
        "tokens": np.concatenate([np.zeros((0, -(-(width or d) // 2)), np.uint8), *(part.tokens for part in parts)]),
        "token_starts": _starts(size for part in parts for size in part.sizes),
        "sentences": np.concatenate([np.zeros((0, d), np.int8), *(part.sentences for part in parts)]),
        "sentence_starts": _starts(len(part.sizes) for part in parts),
        "ids": np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
        "id_starts": _starts(len(part.ids) for part in parts),
        "windows": np.concatenate([np.zeros((0, 2), np.int32), *(part.windows for part in parts)]),
        "window_starts": _starts(len(part.windows) for part in parts),
    }


def _starts(sizes: Iterable[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes], dtype=np.int64)


def _kept(chosen: NDArray[np.bool_], starts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which members the chosen groups have, and where those groups then begin."""
    sizes = np.diff(starts)
    return np.repeat(chosen, sizes), np.concatenate([[0], np.cumsum(sizes[chosen])])


def _by_document(
    candidates: NDArray[np.int64],
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Each document among the candidates (n, c) with the rows and places where it stands."""
    order = np.argsort(candidates, axis=None, kind="stable")
    documents = candidates.reshape(-1)[order]
    for group in np.split(np.arange(len(order)), np.flatnonzero(np.diff(documents)) + 1):
        if len(group):
            rows, places = np.divmod(order[group], candidates.shape[1])
            yield int(documents[group[0]]), rows, places


def main_directions(states: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The space that holds most of the states' length, as (d, width) orthonormal directions of no special order."""
    moment = states.T.astype(np.float64) @ states
    directions = np.linalg.eigh(moment)[1][:, -width:]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    result: NDArray[np.float32] = (directions @ turn).astype(np.float32)
    return result


def _projected(states: NDArray[Any], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    states = states.astype(np.float32)
    return unit(states @ basis if basis.shape[1] else states)


def packed(vectors: NDArray[np.float32], reach: float = np.inf) -> NDArray[np.uint8]:
    """Vectors (n, width) -> (n, width / 2): each entry in four bits, in units of its vector's largest.

    Entries beyond `reach` are cut to it, so that a rare one does not make all others coarse.
    """
    largest = np.clip(np.abs(vectors).max(axis=1, keepdims=True, initial=0), 1e-9, reach)
    entries = (np.clip(np.round(vectors * (LEVELS / largest)), -LEVELS, LEVELS) + LEVELS).astype(np.uint8)
    half = -(-entries.shape[1] // 2)
    low, high = entries[:, :half], np.zeros((len(entries), half), np.uint8)
    high[:, : entries.shape[1] - half] = entries[:, half:]
    result: NDArray[np.uint8] = low | high << 4
    return result


def unpacked(vectors: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """The unit vectors (n, width) that `packed` has made small."""
    entries = np.concatenate([vectors & 15, vectors >> 4], axis=1)[:, :width]
    return unit(entries.astype(np.float32) - LEVELS)
