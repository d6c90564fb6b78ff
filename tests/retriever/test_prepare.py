"""Questions made ready: the split that chooses, and judgements as arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcar.collection.collection import Collection, Document, Query, normalised
from fedcar.collection.splits import split_for_selection
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever


def asked(texts: list[str], dev: tuple[str, ...] = ()) -> Collection:
    """One document; the texts are its training questions."""
    queries = {f"q{row}": Query(f"q{row}", text) for row, text in enumerate((*texts, *dev))}
    names = list(queries)
    judgements = {"train": {name: {"one": 1} for name in names[: len(texts)]}}
    if dev:
        judgements["dev"] = {name: {"one": 1} for name in names[len(texts) :]}
    return Collection("asked", (Document("one", "", "one"),), queries, judgements)


def test_dev_chooses(collection: Collection) -> None:
    training, selection = split_for_selection(collection, 0)
    assert training == collection.judged("train") and selection == collection.judged("dev")


def test_dev_questions_that_stand_in_train_do_not_choose() -> None:
    training, selection = split_for_selection(asked([f"question {n}" for n in range(20)], ("Question  3", "new")), 0)
    assert len(training) == 20 and selection.texts == ["new"]


@pytest.mark.parametrize(("texts", "held_out"), [(10, 1), (40, 4), (207, 21)])
def test_without_dev_a_tenth_chooses(texts: int, held_out: int) -> None:
    collection = asked([f"question {n}" for n in range(texts)])
    training, selection = split_for_selection(collection, 0)
    assert (len(training), len(selection)) == (texts - held_out, held_out)
    assert {*training.texts, *selection.texts} == set(collection.judged("train").texts)
    assert split_for_selection(collection, 0) == (training, selection)


def test_the_seed_decides_which() -> None:
    collection = asked([f"question {n}" for n in range(100)])
    assert split_for_selection(collection, 0)[1] != split_for_selection(collection, 1)[1]


def test_equal_texts_stay_together() -> None:
    """A tenth of the distinct texts: what is held out has not been learned by heart."""
    collection = asked([f"{'Question' if n % 3 else 'question '} {n // 5}" for n in range(100)])
    training, selection = split_for_selection(collection, 0)
    kept, out = ({normalised(text) for text in one.texts} for one in (training, selection))
    assert not kept & out and (len(kept), len(out), len(selection)) == (18, 2, 10)


@pytest.mark.parametrize("questions", [0, 1, 9])
def test_fewer_than_ten_are_not_divided(questions: int) -> None:
    training, selection = split_for_selection(asked([f"question {n}" for n in range(questions)]), 0)
    assert (len(training), len(selection)) == (questions, 0)


def test_a_dev_split_that_all_stands_in_train_is_as_none() -> None:
    training, selection = split_for_selection(asked([f"question {n}" for n in range(20)], ("question 3",)), 0)
    assert (len(training), len(selection)) == (18, 2)


def test_prepared_questions(collection: Collection, encoder_folder: Path, tmp_path: Path) -> None:
    from fedcar.encoder.encoder import Encoder

    cache = FeatureCache(tmp_path)
    retriever = Retriever.untrained(collection.documents, Encoder.load(encoder_folder, "mean"), cache)
    read = collection.judged("train")
    graded = replace(read, relevant=({"fan": 2, "hose": 1, "pump": 0}, *read.relevant[1:]))
    questions = prepare(retriever, graded, cache, Silent(), "questions")
    ids = [document.id for document in collection.documents]
    assert len(questions) == 20 and questions.evidence.shape[:2] == questions.candidates.shape == (20, 6)
    np.testing.assert_array_equal(questions.hidden_states, cache.hidden_states(retriever.encoder, read.texts))
    for row, judged in enumerate(graded.relevant):
        expected = [judged.get(ids[column], 0) for column in questions.candidates[row]]
        assert questions.relevance[row].tolist() == expected
    targets = questions.targets({name: row for row, name in enumerate(ids)}).toarray()
    assert dict(zip(ids, targets[0].tolist(), strict=True))["hose"] == 0.5
    assert (targets.max(axis=1) == 1).all() and (targets > 0).sum() == 21
    nothing = replace(questions, relevant=({"fan": 0}, *graded.relevant[1:])).targets({"fan": 0})
    assert nothing.shape == (20, 1) and nothing.toarray()[0] == 0, "judged, and not relevant"
    part = questions.take(np.array([7, 0]))
    assert isinstance(part, Questions) and part.texts == (questions.texts[7], questions.texts[0])
    np.testing.assert_array_equal(part.evidence, questions.evidence[[7, 0]])
    assert part.relevant == (graded.relevant[7], graded.relevant[0])
    nobody = prepare(retriever, replace(graded, queries=(), relevant=()), cache, Silent(), "questions")
    assert len(nobody) == 0 and retriever.scores_of(nobody).shape[0] == 0
