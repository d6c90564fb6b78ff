"""Bootstrap intervals and the risk-coverage curve, against brute force and by what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from fedcar.evaluation.bootstrap import difference
from fedcar.evaluation.metrics import risk_coverage


def drawn_one_by_one(ours: np.ndarray, theirs: np.ndarray, resamples: int) -> np.ndarray:
    """The means of resampled queries, as the textbook has it."""
    rows = np.random.default_rng(7).integers(0, len(ours), (resamples, len(ours)))
    return ours[rows].mean(axis=1) - theirs[rows].mean(axis=1)


@pytest.mark.parametrize("kind", ["success", "ndcg"])
def test_it_agrees_with_drawing_queries_one_by_one(kind: str) -> None:
    generator = np.random.default_rng(0)
    theirs = generator.random(300)
    ours = np.clip(theirs + generator.normal(0.05, 0.3, 300), 0, 1)
    if kind == "success":
        ours, theirs = (ours > 0.5).astype(float), (theirs > 0.5).astype(float)
    found = difference(ours, theirs, resamples=20_000)
    expected = np.quantile(drawn_one_by_one(ours, theirs, 20_000), [0.025, 0.975])
    assert found is not None and found.mean == pytest.approx(ours.mean() - theirs.mean(), abs=1e-12)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.004)
    assert found.low < found.mean < found.high


def test_it_is_paired() -> None:
    """Two systems that always agree differ by nothing, however hard the queries are."""
    right = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    assert difference(right, right) == (0.0, 0.0, 0.0)
    found = difference(right * 0.5 + 0.25, right * 0.5)
    assert found == pytest.approx((0.25, 0.25, 0.25))


def test_it_holds_the_truth_nineteen_times_in_twenty() -> None:
    """ours is right where theirs is not with .25, the other way round with .15: the truth is .10."""
    generator, held = np.random.default_rng(1), 0
    for seed in range(400):
        drawn = generator.choice([1.0, -1.0, 0.0], size=200, p=[0.25, 0.15, 0.6])
        found = difference(np.maximum(drawn, 0), np.maximum(-drawn, 0), resamples=500, seed=seed)
        assert found is not None
        held += found.low <= 0.10 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.random(50), generator.random(50)
    assert difference(ours, theirs) == difference(ours, theirs) != difference(ours, theirs, seed=1)


def test_edges() -> None:
    assert difference(np.array([]), np.array([])) is None
    assert difference(np.array([1.0]), np.array([0.0])) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="2 values of ours, 1 of theirs"):
        difference(np.ones(2), np.ones(1))


# ---------------------------------------------------------------- the risk-coverage curve


def test_risk_is_the_share_of_wrong_answers_among_the_most_trusted() -> None:
    generator = np.random.default_rng(0)
    trust = generator.permutation(1037) / 1037
    correct = (generator.random(1037) < trust).astype(float)
    curve = risk_coverage(trust, correct)
    assert len(curve) == 10 and curve[-1] == {"coverage": 1.0, "risk": pytest.approx(1 - correct.mean())}
    for point, found in enumerate(curve, 1):
        answered = np.argsort(-trust)[: int(np.ceil(1037 * point / 10 - 1e-9))]
        assert found["coverage"] == pytest.approx(len(answered) / 1037)
        assert found["risk"] == pytest.approx(1 - correct[answered].mean())
    assert curve[0]["risk"] < 0.1 < curve[-1]["risk"]


def test_the_order_of_equally_trusted_questions_does_not_matter() -> None:
    trust, correct = np.repeat([0.9, 0.5], 10), np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 4)
    assert [found["risk"] for found in risk_coverage(trust, correct)] == pytest.approx([0.8] * 10)
    assert risk_coverage(trust, correct[::-1]) == risk_coverage(trust, correct)


def test_a_curve_of_few_questions() -> None:
    assert risk_coverage(np.array([]), np.array([])) == []
    assert [found["coverage"] for found in risk_coverage(np.array([0.1, 0.2]), np.ones(2))] == [0.5] * 5 + [1.0] * 5
