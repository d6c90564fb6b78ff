"""The regression guard and the growth figure: what they say about numbers that are known."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.command import REPOSITORY


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_ratio_a_quarter_below_the_committed_one_fails() -> None:
    from guard import compared

    committed = {"same": 2.0, "better": 2.0, "a little less": 2.0, "much less": 2.0, "gone": 2.0, "no number": 2.0}
    found = {
        "same": 2.0,
        "better": 9.0,
        "a little less": 1.51,
        "much less": 1.49,
        "no number": float("nan"),
        "new": 0.1,
    }
    assert compared(found, committed) == ["much less", "gone", "no number"]


def test_the_committed_ratios_are_those_that_the_guard_measures() -> None:
    import json

    committed = json.loads((REPOSITORY / "benchmarks" / "ratios.json").read_text(encoding="utf-8"))
    assert committed["machine"]["processor"] and len(committed["ratios"]) >= 8
    assert all(value > 0 for value in committed["ratios"].values())


def test_a_fitted_exponent_is_the_one_the_points_were_made_with(tmp_path: Path) -> None:
    from growth import exponent, figure, sizes, table

    assert sizes(100, 10_000) == [100, 316, 1000, 3162, 10_000]
    points = {"square & more": {n: 3e-6 * n**2 + 1e-4 for n in sizes(100, 100_000)}, "flat": {100: 0.1, 1000: 0.1}}
    assert abs(exponent(points["square & more"]) - 2) < 0.01 and exponent(points["flat"]) == pytest.approx(0)
    assert "| flat | 0.1 |" in table(points, "documents") and "| 2.00 |" in table(points, "documents")
    drawn = ElementTree.fromstring(figure(points, "documents"))
    texts = [one.text for one in drawn if one.tag.endswith("text")]
    assert "square & more: n^2.00" in texts and sum(one.tag.endswith("polyline") for one in drawn) == 2
