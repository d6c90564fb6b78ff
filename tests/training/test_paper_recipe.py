"""The paper's recipe: it does what it says, and says everywhere that it guarantees nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.command import fedcar, learnable

from fedcar.collection.collection import Collection
from fedcar.training.paper_recipe import PaperRecipe


def test_six_epochs_without_noise_then_clipped_at_the_moving_quantile() -> None:
    recipe, parameter = PaperRecipe(), torch.zeros(2000)
    for _ in range(50):
        parameter.grad = torch.full((2000,), 2000**-0.5)
        recipe([parameter], 6)
        assert torch.equal(parameter.grad, torch.full((2000,), 2000**-0.5))
    assert recipe.threshold == pytest.approx(1.0, rel=1e-5)
    parameter.grad = torch.full((2000,), 100 * 2000**-0.5)
    recipe([parameter], 7)
    assert recipe.threshold is not None and recipe.threshold < 1.1  # one wild batch hardly moves the .9 quantile
    signal = parameter.grad.mean() * 2000**0.5
    noise = (parameter.grad - parameter.grad.mean()).std()
    assert float(signal) == pytest.approx(recipe.threshold, abs=0.5)
    assert float(noise) == pytest.approx(0.1 * recipe.threshold, rel=0.1)


def test_no_formal_guarantee_is_said_wherever_it_is_used(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    learnable(Collection.read(toy_collection)).write(tmp_path / "collection")
    options = ("--encoder", tiny_model("llama"), "--cache", tmp_path / "cache", "--method", "head", "--recipe", "paper")
    trained = fedcar("train", tmp_path / "collection", "-o", tmp_path / "out", *options, "--epochs", 8, "--json")
    assert trained.code == 0, trained.err
    federated = fedcar(
        "federate", tmp_path / "collection", "-o", tmp_path / "all", "--clients", 2, "--rounds", 7, *options, "--json"
    )
    assert federated.code == 0, federated.err
    for result in (trained, federated):
        assert result.json["privacy"]["epsilon"] == "infinity" and not result.json["privacy"]["guarantee"]
        assert "warms up without noise" in result.json["privacy"]["reason"]
        assert "No formal guarantee (epsilon = infinity)" in result.err
    assert '"guarantee": false' in (tmp_path / "out" / "privacy.json").read_text()
    for command, more in (("train", ()), ("federate", ("--clients", 2))):
        refused = fedcar(command, tmp_path / "collection", "-o", tmp_path / "no", *more, *options, "--epsilon", 1)
        assert refused.code == 1 and "--recipe paper --epsilon 1" in refused.err
    assert fedcar("train", tmp_path / "collection", "-o", tmp_path / "no", "--recipe", "best").code == 1
