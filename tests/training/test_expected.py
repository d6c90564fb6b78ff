"""What a dry run says of the gain: read off the measured curve, by kind and by questions a document."""

from __future__ import annotations

from fedcar.training.expected import Point, expected, learning_curve

CURVE = (
    Point("labels", True, 10, 20, 3, 0.02, 0.01),
    Point("labels", True, 10, 200, 3, 0.2, 0.1),
    Point("more labels", True, 10, 30, 3, 0.05, 0.02),
    Point("texts", False, 1000, 100, 3, 0.01, 0.01),
)


def test_points_of_about_as_many_questions_a_document_tell_of_the_gain() -> None:
    told = expected(100, 250, labels=True, curve=CURVE)
    assert told["success@1 gained"] == [0.02, 0.05] and told["measured on"] == ["labels", "more labels"]


def test_where_none_has_about_as_many_the_nearest_tells() -> None:
    assert expected(10, 5000, labels=True, curve=CURVE)["success@1 gained"] == [0.2, 0.2]


def test_labels_and_texts_are_told_apart() -> None:
    assert expected(1000, 100, labels=False, curve=CURVE)["measured on"] == ["texts"]


def test_without_training_questions_nothing_is_promised() -> None:
    assert "success@1 gained" not in expected(10, 0, labels=True, curve=CURVE)


def test_the_packaged_curve_has_both_kinds_and_hardly_a_mean_below_hybrid() -> None:
    """One of 900 draws was (`docs/results.md`): banking77 with 50 questions."""
    curve = learning_curve()
    assert {point.labels for point in curve} == {True, False}
    assert all(point.draws >= 20 and point.success >= -0.005 and point.ndcg >= -0.005 for point in curve)
