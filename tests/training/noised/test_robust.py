"""Noised sums of which one of five is hostile; all of it is post-processing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedcar.training.noised.robust import CONTRADICTION, contradicting, cut, usual_counts

DEVIATION = 3.0


def class_sums(clients: int, common: bool = True) -> dict[str, dict[str, Tensor]]:
    """Each client's noised class sums: around the documents' directions, or of documents that nobody else asks of."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(20, 64, generator=generator), dim=1)
    found = {}
    for number in range(clients):
        own = torch.ones(20, 1) if common else (torch.arange(20) % clients == number).float()[:, None] * clients
        found[f"c{number}"] = {"rows": 9 * own * directions + DEVIATION * torch.randn(20, 64, generator=generator)}
    return found


@pytest.mark.parametrize("common", [True, False])
def test_honest_sums_contradict_nobody(common: bool) -> None:
    assert contradicting(class_sums(5, common), DEVIATION) == {}


@pytest.mark.parametrize("factor", [-25.0, -1.5, -1.0])
def test_sums_turned_around_contradict_all_others(factor: float) -> None:
    answers = class_sums(5)
    answers["c1"] = {"rows": factor * answers["c1"]["rows"]}
    refused = contradicting(answers, DEVIATION)
    assert list(refused) == ["c1"] and refused["c1"].startswith(CONTRADICTION)
    assert contradicting({name: answers[name] for name in ("c0", "c1", "c2")}, DEVIATION) == {}
    nine = class_sums(9)
    for name in ("c1", "c5"):
        nine[name] = {"rows": factor * nine[name]["rows"]}
    assert sorted(contradicting(nine, DEVIATION)) == ["c1", "c5"]


def test_no_sum_is_longer_than_is_usual() -> None:
    answers = class_sums(5)
    usual = float(answers["c0"]["rows"].norm())
    answers["c1"] = {"rows": 29 * answers["c1"]["rows"]}
    after = cut(answers)
    assert float(after["c1"]["rows"].norm()) < 1.2 * usual
    assert all(torch.equal(after[name]["rows"], answers[name]["rows"]) for name in answers if name != "c1")
    few = {name: answers[name] for name in ("c0", "c1")}
    assert cut(few) == few


def test_false_held_out_counts_of_a_minority_do_not_choose() -> None:
    """Search is kept or left by what most clients say; of fewer than five the counts are added up by weight."""
    honest = {f"c{number}": torch.tensor([100.0, 40.0, 60.0 + number]) for number in range(5)}
    lying = {**honest, "c0": torch.tensor([1e9, 1e9, -1e9]), "c3": torch.tensor([1e9, 1e9, 0.0])}
    questions, search, trained = usual_counts(lying, {}).tolist()
    assert 0 < search < trained <= questions * 2 and trained - search > 50
    few = {name: honest[name] for name in ("c0", "c1")}
    torch.testing.assert_close(
        usual_counts(few, {"c0": 1.0, "c1": 0.5}), torch.tensor([150.0, 60.0, 90.5], dtype=torch.float64)
    )
