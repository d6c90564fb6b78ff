"""Metrics: against ir-measures; top-k against a full stable sort."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from ir_measures import RR, R, Success, nDCG

from fedcar.common.vectors import top_k
from fedcar.evaluation.metrics import NAMES, mean, per_query

MEASURES = dict(zip(NAMES, (Success @ 1, R @ 10, RR @ 10, nDCG @ 10), strict=True))


@settings(deadline=None, max_examples=200)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
        elements=st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, float("-inf")]), st.floats(-2, 2, width=32)),
    ),
    st.integers(1, 15),
)
def test_top_k_equals_a_full_stable_sort(scores: np.ndarray, k: int) -> None:
    expected = [sorted(range(scores.shape[1]), key=lambda column: (-row[column], column))[:k] for row in scores]
    assert top_k(scores, k).tolist() == expected


@pytest.mark.parametrize(("queries", "documents", "k"), [(0, 5, 3), (3, 0, 2), (0, 0, 1), (2, 4, 0), (2, 1, 5)])
def test_top_k_at_the_edges(queries: int, documents: int, k: int) -> None:
    assert top_k(np.zeros((queries, documents), dtype=np.float32), k).shape == (queries, min(k, documents))


def test_top_k_of_a_score_that_is_no_number() -> None:
    scores = np.array([[np.nan, 1.0, np.nan, 2.0], [np.nan] * 4], dtype=np.float32)
    assert top_k(scores, 3).tolist() == [[3, 1, 0], [0, 1, 2]]
    assert top_k(scores, 4).tolist() == [[3, 1, 0, 2], [0, 1, 2, 3]]


def test_per_query_equals_ir_measures() -> None:
    generator = np.random.default_rng(0)
    documents = [f"d{number}" for number in range(40)]
    rankings, judgements = [], []
    for _ in range(300):
        ranking = generator.permutation(documents)[: generator.choice([1, 3, 10, 25, 40])].tolist()
        judged = generator.choice(documents, size=generator.integers(1, 25), replace=False).tolist()
        rankings.append(ranking)
        judgements.append(
            {document: int(generator.choice([0, 1, 1, 2, 3, 7])) for document in judged} | {"not in the collection": 1}
        )
    found = per_query(rankings, judgements)
    qrels = {str(row): judged for row, judged in enumerate(judgements)}
    run = {
        str(row): {document: float(len(ranking) - place) for place, document in enumerate(ranking)}
        for row, ranking in enumerate(rankings)
    }
    assert set(found) == set(NAMES)
    for name, measure in MEASURES.items():
        expected = np.full(300, np.nan)
        for metric in ir_measures.iter_calc([measure], qrels, run):
            expected[int(metric.query_id)] = metric.value
        np.testing.assert_allclose(found[name], expected, atol=1e-9, err_msg=name)
        assert 0 < found[name].mean() < 1


def test_the_arithmetic_of_one_query() -> None:
    found = per_query([["x", "a", "b"]], [{"a": 1, "b": 3, "c": 0}])
    assert {name: values.tolist() for name, values in found.items()} == {
        "success@1": [0.0],
        "recall@10": [1.0],
        "mrr@10": [0.5],
        "ndcg@10": [pytest.approx((1 / np.log2(3) + 3 / 2) / (3 + 1 / np.log2(3)))],
    }


@pytest.mark.parametrize(
    ("ranking", "judged"), [([], {"a": 1}), (["a"], {}), (["a"], {"a": 0}), (["b"] * 10 + ["a"], {"a": 1})]
)
def test_nothing_found_is_0_everywhere(ranking: list[str], judged: dict[str, int]) -> None:
    assert all(values.tolist() == [0.0] for values in per_query([ranking], [judged]).values())


def test_rankings_and_judgements_must_go_together() -> None:
    with pytest.raises(ValueError, match="shorter"):
        per_query([["a"], ["b"]], [{"a": 1}])


def test_mean_over_the_chosen_queries() -> None:
    values = per_query([["a"], ["b"], ["a"]], [{"a": 1}] * 3)
    assert mean(values, np.array([True, True, False])) == {"queries": 2, **dict.fromkeys(NAMES, 0.5)}
    assert mean(values, np.zeros(3, dtype=bool)) is None
