"""Is an encoder hopeless? Whether its cosines find anything, seen on the packaged public collection alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from fedcar.common.progress import Silent
from fedcar.common.vectors import unit
from fedcar.encoder.reference import reference_documents, reference_pairs, reference_states, reference_texts
from fedcar.head.view import View
from fedcar.retriever.lexical import LexicalIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.cache import FeatureCache
    from fedcar.encoder.encoder import Encoder

SHARE = 0.5  # of BM25's mean reciprocal rank; a bag of MiniLM's word vectors reaches .7, raw decoders .1 to .25
MOST_PIECES, MOST_UNKNOWN = 3.25, 0.1  # tokens a word, and their unknown share, of who reads English; letters: 4 to 5


def view_for(encoder: Encoder, cache: FeatureCache, report: Silent | None = None) -> View | None:
    """What cosines are taken of instead of the hidden states, for a hopeless encoder; None for any other.

    Hopeless is who finds the packaged documents by their packaged questions less than half as well as BM25 does. No
    document and no question of the collection at hand has a say, so that all devices of a federation, which have one
    encoder, see the same, under epsilon too. The packaged texts are English: an encoder whose tokenizer spells them
    letter by letter, or does not know them, is for other texts and keeps what it has.

    Formal guarantees:
        sentence_encoders_keep_their_hidden_states: MiniLM is told nothing new, and searched bit for bit as before.
    """
    encoder = encoder.untrained
    if not reads_words(encoder, reference_texts()):
        return None
    states, documents, asked = reference_states(encoder, cache), reference_documents(), reference_pairs()
    with encoder.model.without_remarks():  # nobody asked about these texts: that one is cut is no news
        embeddings = unit(cache.public.hidden_states(encoder.for_documents, documents))
    questions = unit(states["pooled"][[pair.question for pair in asked]])
    relevant = np.array([pair.document for pair in asked])
    by_cosine = reciprocal_rank(questions @ embeddings.T, relevant)
    by_words = reciprocal_rank(LexicalIndex.build(documents).scores([pair.text for pair in asked]), relevant)
    if by_cosine >= SHARE * by_words:
        return None
    numbers = f"mean reciprocal rank {by_cosine:.3f} on the packaged questions, words {by_words:.3f}"
    (report or Silent()).say(f"{encoder.name}: its cosines find little ({numbers}); search goes by words first")
    return View.of_reference(states)


def reads_words(encoder: Encoder, texts: Sequence[str]) -> bool:
    """Whether the encoder's tokenizer knows the words of these texts, or pieces of them that are more than letters."""
    ids = list(chain.from_iterable(encoder.model.pieces(texts)))
    words, unknown = sum(len(text.split()) for text in texts), ids.count(encoder.tokenizer.unk_token_id)
    return len(ids) <= MOST_PIECES * words and unknown <= MOST_UNKNOWN * len(ids)


def reciprocal_rank(scores: NDArray[np.float32], relevant: NDArray[np.int64]) -> float:
    """Scores (n, documents) and the relevant document of each question (n,) -> MRR; who has equal scores is before."""
    own = np.take_along_axis(scores, relevant[:, None], axis=1)
    return float((1 / (scores >= own).sum(axis=1)).mean())
