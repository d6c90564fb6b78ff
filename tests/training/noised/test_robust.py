"""Noised sums of which one of five is hostile; all of it is post-processing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import federated
from support.federated import DOCUMENTS, World, shares
from torch import Tensor

from fedcar.training.noised.clients import Behind, InTurn, NoisedClient
from fedcar.training.noised.plan import HELD_OUT, make_plan
from fedcar.training.noised.public import PublicQuestions
from fedcar.training.noised.robust import CONTRADICTION, contradicting, cut, usual_counts
from fedcar.training.noised.server import UNJUDGED, Outcome, PrivateTraining, held_out_counts
from fedcar.training.noised.sums import COUNT, ClippedSums
from fedcar.training.selection import Standard
from fedcar.training.target import Target

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
    counts = {"c0": {"count": torch.tensor([9e9])}, "c1": {"count": torch.tensor([1.0])}}
    assert cut(counts) == counts


def test_false_held_out_counts_of_a_minority_do_not_choose() -> None:
    """Search is kept or left by what most clients say."""
    honest = {f"c{number}": torch.tensor([100.0, 40.0, 60.0 + number]) for number in range(5)}
    lying = {**honest, "c0": torch.tensor([1e9, 1e9, -1e9]), "c3": torch.tensor([1e9, 1e9, 0.0])}
    questions, search, trained = usual_counts(lying, {}).tolist()
    assert 0 < search < trained <= questions * 2 and trained - search > 50
    half = {"c0": honest["c0"], "c1": torch.tensor([100.0, 40.0, 1e9])}
    questions, search, trained = usual_counts(half, {"c0": 1.0, "c1": 0.5}).tolist()
    assert (questions, search, trained) == (150.0, 60.0, 90.0), "half of them cannot say that training was better"


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def world(tiny_model: Callable[..., Path]) -> World:
    return World(tiny_model("llama"), questions=2400)


How = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def times(factor: float) -> How:
    return lambda answer: {name: factor * tensor for name, tensor in answer.items()}


def other_rows(answer: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.roll(1, 0) for name, tensor in answer.items()}


class Hostile(Behind):
    """Some clients send class sums and steps that `how` makes of honest ones, and say that training did wonders."""

    def __init__(self, clients: InTurn, how: Mapping[str, How]) -> None:
        super().__init__(clients)
        self.how = how

    def ask(self, request: Any, names: Any = None) -> Any:
        answers = self.clients.ask(request, names)
        given = dict(answers.given)
        for name, how in self.how.items():
            if HELD_OUT in given[name]:
                given[name] = {HELD_OUT: torch.tensor([1e3, 0.0, 1e3])}
            elif COUNT not in given[name]:
                given[name] = how(given[name])
        return replace(answers, given=given)


def run(world: World, how: Mapping[str, How], *, public: bool = False, held_out: bool = False) -> Outcome:
    """One run of five clients at epsilon 3; `public` questions choose, or `held_out` ones of the clients, or none."""
    untrained = world.retriever()
    counts = partial(held_out_counts, untrained, world.selection, None)
    devices = [
        NoisedClient(f"c{number}", ClippedSums(untrained, world.training.take(rows)), held_out=counts)
        for number, rows in enumerate(shares(len(world.training), 5))
    ]
    target = Target(3.0, 1e-5, held_out=held_out, public_dev=public)
    questions = PublicQuestions(selection=world.selection) if public else None
    clients = Hostile(InTurn(devices), how)
    return PrivateTraining(untrained, clients, make_plan(target, "head", DOCUMENTS), public=questions).run()


def success(world: World, outcome: Outcome) -> float:
    return Standard().score(world.selection, outcome.retriever.scores_of(world.selection)).success


@pytest.mark.parametrize("how", [times(-25.0), times(-1.0), other_rows], ids=["far", "turned around", "other rows"])
def test_one_of_five_costs_little_under_epsilon(world: World, how: How) -> None:
    assert success(world, run(world, {"c1": how})) >= success(world, run(world, {})) - 0.02


@pytest.mark.parametrize("factor", [-25.0, -1.0])
def test_the_one_to_blame_is_named_in_every_exchange_after_the_count(world: World, factor: float) -> None:
    refused = [record.refused for record in run(world, {"c1": times(factor)}).records]
    assert refused[0] == {} and all(set(one) == {"c1"} for one in refused[1:])
    assert refused[1]["c1"].startswith(CONTRADICTION)


def test_the_second_of_two_is_still_cut_where_the_first_was_refused(world: World) -> None:
    """Four that are left of five are as much on their guard: their sums are cut to the usual length."""
    outcome = run(world, {"c1": times(-25.0), "c3": lambda answer: times(25.0)(other_rows(answer))})
    assert all("c1" in record.refused for record in outcome.records[1:])
    assert success(world, outcome) > federated.untrained(world)


@pytest.mark.parametrize("judged", ["public", "held_out"])
@pytest.mark.parametrize("how", [times(-25.0), times(-1.0), other_rows], ids=["far", "turned around", "other rows"])
def test_two_of_five_never_end_below_search_where_questions_judge(world: World, how: How, judged: str) -> None:
    outcome = run(world, {"c1": how, "c3": how}, **{judged: True})
    assert success(world, outcome) >= federated.untrained(world)
    assert outcome.statement is not None and UNJUDGED not in outcome.statement.not_covered


def test_a_model_that_four_of_five_spoilt_is_not_kept_by_public_questions(world: World) -> None:
    outcome = run(world, dict.fromkeys(("c0", "c1", "c2", "c3"), times(-25.0)), public=True)
    assert outcome.name == "none" and success(world, outcome) >= federated.untrained(world)


def test_the_statement_says_where_nothing_could_judge(world: World) -> None:
    outcome = run(world, {})
    assert outcome.statement is not None and UNJUDGED in outcome.statement.not_covered
