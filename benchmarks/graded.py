"""Collections with several graded relevant documents a question, made out of shared ones; nothing of them is kept.

In many archives a question has one document that answers it and some that are about the same: these are worth less, and
count. `learning_curve.py` draws its curve over them too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from fedcar.collection.collection import SPLITS, Collection, Document, Query

ANSWER, NEAR = 2, 1
PARAGRAPHS, ABSTRACTS = 8, 10  # relevant documents a question
LEAST_SENTENCE = 20  # characters of an abstract's first sentence, and of what follows it
SPLIT_OF = ("train", "train", "train", "train", "train", "dev", "test", "test", "test", "test")


def with_neighbours(collection: Collection) -> Collection:
    """Paragraphs in the order of their articles: the eight of a stretch are relevant, and the one that answers most."""
    of_title: dict[str, list[str]] = defaultdict(list)
    for document in collection.documents:
        of_title[document.title].append(document.id)
    group: dict[str, list[str]] = {}
    for ids in of_title.values():
        for start in range(0, len(ids), PARAGRAPHS):
            for identifier in ids[start : start + PARAGRAPHS]:
                group[identifier] = ids[start : start + PARAGRAPHS]

    def graded(judged: Mapping[str, int]) -> dict[str, int]:
        answers = {one: ANSWER for one, score in judged.items() if score > 0}
        return {one: NEAR for answer in answers for one in group[answer]} | answers

    judgements = {
        split: {query: graded(judged) for query, judged in of_split.items()}
        for split, of_split in collection.judgements.items()
    }
    return replace(collection, name=f"{collection.name}_graded", judgements=judgements)


def abstracts(collection: Collection) -> Collection:
    """Abstracts asked for by their first sentence: their own is the answer, nine others of the category are near it."""
    of_category: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for query, judged in zip(*judged_of(collection, "train"), strict=True):
        _, title_end, rest = query.text.partition(". ")  # title, then the abstract
        first, end, body = rest.partition(". ")
        if title_end and end and min(len(first), len(body)) >= LEAST_SENTENCE:
            of_category[next(one for one, score in judged.items() if score > 0)].append((query.id, first, body))
    documents, queries = [], {}
    judgements: dict[str, dict[str, dict[str, int]]] = {split: {} for split in SPLITS}
    for members in of_category.values():
        if len(members) < ABSTRACTS:
            continue
        chosen = members[:ABSTRACTS]
        for identifier, first, body in chosen:
            asked = f"q{identifier}"
            documents.append(Document(identifier, "", body))
            queries[asked] = Query(asked, first)
            split = SPLIT_OF[(len(documents) * 7) % len(SPLIT_OF)]  # every split has questions of every category
            judgements[split][asked] = {other: NEAR for other, _, _ in chosen} | {identifier: ANSWER}
    return Collection(f"{collection.name}_graded", tuple(documents), queries, judgements)


def judged_of(collection: Collection, split: str) -> tuple[tuple[Query, ...], tuple[Mapping[str, int], ...]]:
    """The judged queries of a split and what is relevant for each."""
    judged = collection.judged(split)
    return judged.queries, judged.relevant
