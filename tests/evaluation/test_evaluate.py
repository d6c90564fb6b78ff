"""The evaluation: four systems on the same queries, measured as ir-measures does, and nothing learned by heart."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_measures
import pytest
from ir_measures import RR, R, Success, nDCG
from support.command import learnable

from fedcar import evaluate, train
from fedcar.collection.collection import Collection, Query
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever.retriever import Retriever

SYSTEMS = ("bm25", "mips", "hybrid", "retriever")
MEASURES = {"success@1": Success @ 1, "recall@10": R @ 10, "mrr@10": RR @ 10, "ndcg@10": nDCG @ 10}


@pytest.fixture(scope="module")
def toy(toy_collection: Path) -> Collection:
    """The toy with graded judgements: two documents answer the test questions about the fan."""
    read = Collection.read(toy_collection)
    graded = {
        query: {"fan": 2, "filter": 1} if query[:3] == "fan" else one for query, one in read.judgements["test"].items()
    }
    return replace(read, judgements={**read.judgements, "test": graded})


@pytest.fixture(scope="module", params=["head", "adapter"])
def retriever(request: pytest.FixtureRequest, toy_collection: Path, encoder: Path, cache: Path) -> Retriever:
    collection = learnable(Collection.read(toy_collection))
    retriever = train(collection, encoder=encoder, cache=cache, method=request.param, epochs=12)
    assert retriever.training.method == request.param
    return retriever


def test_the_shape_is_the_contract(retriever: Retriever, toy: Collection, cache: Path) -> None:
    result = evaluate(retriever, toy, cache=cache)
    assert list(result) == [
        "collection", "split", "documents", "queries", "trained_on", "seconds", "systems", "calibration",
        "unanswerable", "risk_coverage", "difference",
    ]  # fmt: skip
    assert (result["collection"], result["split"], result["documents"], result["queries"]) == ("toy", "test", 6, 12)
    assert tuple(result["systems"]) == SYSTEMS
    for system in result["systems"].values():
        assert list(system) == ["all", "seen", "unseen"]
        assert [system[part]["queries"] for part in system] == [12, 10, 2]
        for numbers in system.values():
            assert list(numbers) == ["queries", *MEASURES]
            assert all(0 <= numbers[name] <= 1 for name in MEASURES)
    assert result["calibration"].keys() == {"ece", "coverage", "threshold", "ece@10", "at_risk"}
    assert result["unanswerable"].keys() == {"queries", "auroc"} and result["unanswerable"]["queries"] == 2
    assert len(result["risk_coverage"]) == 10 and result["risk_coverage"][-1].keys() == {"coverage", "risk"}
    assert result["difference"].pop("to") == "hybrid" and list(result["difference"]) == ["all", "seen", "unseen"]
    for part, found in result["difference"].items():
        ours, theirs = (result["systems"][name][part]["success@1"] for name in ("retriever", "hybrid"))
        assert list(found) == ["success@1", "low", "high"] and found["success@1"] == pytest.approx(ours - theirs)
        assert found["low"] <= found["success@1"] <= found["high"]


def test_the_numbers_are_those_of_ir_measures(
    retriever: Retriever, toy: Collection, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.trec"
    result = evaluate(retriever, toy, cache=cache, run=file)
    run = list(ir_measures.read_trec_run(str(file)))
    assert len(run) == 12 * 6
    judged = [ir_measures.Qrel(q, d, s) for q, one in toy.judgements["test"].items() for d, s in one.items()]
    for part, names in {
        "all": toy.judgements["test"],
        "unseen": [query for query in toy.judgements["test"] if query.startswith("hose")],
    }.items():
        wanted = [qrel for qrel in judged if qrel.query_id in names]
        expected = ir_measures.calc_aggregate(MEASURES.values(), wanted, [one for one in run if one.query_id in names])
        for name, measure in MEASURES.items():
            assert result["systems"]["retriever"][part][name] == pytest.approx(expected[measure], abs=1e-9), name


def test_the_run_agrees_with_search(retriever: Retriever, toy: Collection, cache: Path, tmp_path: Path) -> None:
    evaluate(retriever, toy, cache=cache, run=tmp_path / "run.trec")
    found: dict[str, list[str]] = {}
    for one in ir_measures.read_trec_run(str(tmp_path / "run.trec")):
        found.setdefault(one.query_id, []).append(one.doc_id)
    for query, ranking in found.items():
        assert ranking == [hit.id for hit in retriever.search(toy.queries[query].text, 6)]


def test_the_baselines_do_not_know_what_was_trained(
    retriever: Retriever, toy: Collection, encoder: Path, cache: Path
) -> None:
    untrained = train(replace(toy, judgements={}, queries={}), encoder=encoder, cache=cache)
    before, after = (evaluate(one, toy, cache=cache)["systems"] for one in (untrained, retriever))
    for name in ("bm25", "mips", "hybrid"):
        assert after[name] == before[name]


def test_evaluating_leaves_the_retriever_as_it_was(retriever: Retriever, toy: Collection, cache: Path) -> None:
    adapter, answer = retriever.encoder.adapter, retriever.search("blower")
    first, second = evaluate(retriever, toy, cache=cache), evaluate(retriever, toy, cache=cache)
    assert retriever.encoder.adapter is adapter and retriever.search("blower") == answer
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_queries_whose_text_stands_in_train_are_counted_and_left_out(
    retriever: Retriever, toy: Collection, cache: Path
) -> None:
    leak = Query("leak", "  MY blower is   broken ")
    judgements = {**toy.judgements, "test": {**toy.judgements["test"], "leak": {"fan": 1}}}
    leaking = replace(toy, queries={**toy.queries, "leak": leak}, judgements=judgements)
    clean, result = evaluate(retriever, toy, cache=cache), evaluate(retriever, leaking, cache=cache)
    assert (result["trained_on"], clean["trained_on"], result["queries"]) == (1, 0, 12)
    assert result["systems"] == clean["systems"]


def test_where_a_part_has_no_query_its_numbers_are_null(retriever: Retriever, toy: Collection, cache: Path) -> None:
    seen = {query: one for query, one in toy.judgements["test"].items() if not query.startswith("hose")}
    queries = {name: query for name, query in toy.queries.items() if query.answerable}
    result = evaluate(
        retriever, replace(toy, queries=queries, judgements={**toy.judgements, "test": seen}), cache=cache
    )
    assert all(system["unseen"] is None and system["seen"] for system in result["systems"].values())
    assert result["difference"]["unseen"] is None and result["difference"]["seen"]
    assert result["unanswerable"] is None


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_split_can_be_measured(retriever: Retriever, toy: Collection, cache: Path, split: str) -> None:
    result = evaluate(retriever, toy, split, cache=cache)
    assert result["queries"] == len(toy.judged(split))


def test_documents_that_the_retriever_does_not_hold(toy: Collection, encoder: Path, cache: Path) -> None:
    few = train(Collection("few", toy.documents[:3], {}, {}), encoder=encoder, cache=cache)
    with pytest.warns(FedcarWarning, match="6 test queries are about documents that the retriever does not hold"):
        assert evaluate(few, toy, cache=cache)["queries"] == 6


def test_documents_of_another_text_under_the_same_id_are_noticed(
    retriever: Retriever, toy: Collection, cache: Path
) -> None:
    """As where a table was sorted anew and the ids are its line numbers."""
    first, second, *rest = toy.documents
    moved = replace(first, title=second.title, text=second.text), replace(second, title=first.title, text=first.text)
    with pytest.warns(
        FedcarWarning, match='2 of 6 documents of toy have another text in the retriever, the first is "'
    ):
        evaluate(retriever, replace(toy, documents=(*moved, *rest)), cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FedcarWarning)
        evaluate(retriever, toy, cache=cache)


def refuse(*arguments: Any, **options: Any) -> str:
    with pytest.raises(FedcarError) as caught:
        evaluate(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_measured_is_refused(retriever: Retriever, toy: Collection, cache: Path, tmp_path: Path) -> None:
    assert '--split "exam"' in refuse(retriever, toy, "exam")
    assert "no judged query" in refuse(retriever, replace(toy, judgements={}), cache=cache)
    assert "--run" in refuse(retriever, toy, cache=cache, run=tmp_path / "no" / "folder" / "run.trec")
