"""What training may gain with so many questions, read off the learning curve that was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

CURVE = Path(__file__).with_name("learning_curve.json")  # made by benchmarks/learning_curve.py --table
NEAR = 2.0  # a point of the curve tells of up to so many times as many questions a document, or as few


class Point(NamedTuple):
    """The mean gains over hybrid search of several draws of so many training questions, on others held back."""

    collection: str
    labels: bool
    documents: int
    questions: int
    draws: int
    success: float
    ndcg: float

    @property
    def density(self) -> float:
        """Training questions a document."""
        return self.questions / self.documents


@cache
def learning_curve() -> tuple[Point, ...]:
    """The points that were measured."""
    return tuple(Point(**point) for point in json.loads(CURVE.read_text(encoding="utf-8")))


def expected(documents: int, questions: int, labels: bool, curve: Sequence[Point] | None = None) -> dict[str, object]:
    """What collections of the same kind gained with about as many questions a document: the least and the most.

    Labels and texts are different kinds. Where no point has about as many, the nearest one tells.
    """
    if not questions or not documents:
        return {"gain over hybrid": "none: too few questions to learn from and to check"}
    density = questions / documents
    alike = [point for point in (learning_curve() if curve is None else curve) if point.labels == labels]
    if not alike:
        return {"questions a document": round(density, 2)}

    def apart(point: Point) -> float:
        return max(point.density / density, density / point.density)

    near = [point for point in alike if apart(point) <= NEAR] or [min(alike, key=apart)]
    return {
        "questions a document": round(density, 2),
        "success@1 gained": [min(point.success for point in near), max(point.success for point in near)],
        "ndcg@10 gained": [min(point.ndcg for point in near), max(point.ndcg for point in near)],
        "measured on": sorted({point.collection for point in near}),
    }
